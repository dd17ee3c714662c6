@echo off
call "%~dp0eichi.bat" f1 --lang ru --inbrowser %*
exit /b %errorlevel%
