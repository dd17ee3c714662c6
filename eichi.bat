@echo off
rem Finds Python and hands everything to launch.py; every other .bat calls this one.
setlocal
set "EICHI_PYTHON="
py -3 -c "" >nul 2>nul && set "EICHI_PYTHON=py -3"
if not defined EICHI_PYTHON python -c "" >nul 2>nul && set "EICHI_PYTHON=python"
if not defined EICHI_PYTHON goto no_python
%EICHI_PYTHON% "%~dp0launch.py" %*
if not "%errorlevel%"=="0" goto failed
exit /b 0

:no_python
echo Python was not found. Install Python 3.12 from https://www.python.org/downloads/ ,
echo tick "Add python.exe to PATH" in its installer, and start this file again.
pause
exit /b 1

:failed
set "EICHI_RESULT=%errorlevel%"
echo The program ended with code %EICHI_RESULT%. The reason is in the lines above.
pause
exit /b %EICHI_RESULT%
