@echo off
call "%~dp0eichi.bat" endframe --lang zh-tw --inbrowser %*
exit /b %errorlevel%
