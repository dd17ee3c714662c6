@echo off
call "%~dp0eichi.bat" endframe --lang ru --inbrowser %*
exit /b %errorlevel%
