@echo off
rem The menu itself is launch.py without arguments.
call "%~dp0eichi.bat" %*
exit /b %errorlevel%
