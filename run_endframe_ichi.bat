@echo off
call "%~dp0eichi.bat" endframe --lang ja --inbrowser %*
exit /b %errorlevel%
