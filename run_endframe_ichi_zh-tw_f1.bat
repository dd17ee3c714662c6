@echo off
call "%~dp0eichi.bat" f1 --lang zh-tw --inbrowser %*
exit /b %errorlevel%
