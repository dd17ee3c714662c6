@echo off
call "%~dp0eichi.bat" oneframe --lang zh-tw --inbrowser %*
exit /b %errorlevel%
