@echo off
call "%~dp0eichi.bat" f1 --lang en --inbrowser %*
exit /b %errorlevel%
