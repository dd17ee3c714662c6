@echo off
call "%~dp0eichi.bat" oneframe --lang en --inbrowser %*
exit /b %errorlevel%
