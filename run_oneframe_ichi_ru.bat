@echo off
call "%~dp0eichi.bat" oneframe --lang ru --inbrowser %*
exit /b %errorlevel%
