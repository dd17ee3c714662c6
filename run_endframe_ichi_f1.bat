@echo off
call "%~dp0eichi.bat" f1 --lang ja --inbrowser %*
exit /b %errorlevel%
