@echo off
call "%~dp0eichi.bat" endframe --lang en --inbrowser %*
exit /b %errorlevel%
