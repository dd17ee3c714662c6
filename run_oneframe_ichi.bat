@echo off
call "%~dp0eichi.bat" oneframe --lang ja --inbrowser %*
exit /b %errorlevel%
