# Find Python, and the compilers where Horovod is built.

find_package(Python 3.11 QUIET COMPONENTS Interpreter)
if(NOT Python_FOUND)
  find_package(Python QUIET COMPONENTS Interpreter)
  if(Python_FOUND)
    set(found "found only ${Python_EXECUTABLE}, which is Python ${Python_VERSION}")
  else()
    set(found "found none")
  endif()
  message(FATAL_ERROR "Python 3.11 or newer is needed; ${found}. "
    "Install one (Debian 12: apt-get install python3 python3-venv), load your site's module, "
    "or name it once: cmake --preset ... -DPython_EXECUTABLE=/path/to/python3")
endif()
execute_process(COMMAND "${Python_EXECUTABLE}" -c "import ensurepip, venv" RESULT_VARIABLE failed ERROR_QUIET)
if(failed)
  message(FATAL_ERROR "${Python_EXECUTABLE} (Python ${Python_VERSION}) cannot make virtual environments. "
    "Install its venv module (Debian: apt-get install python3-venv), "
    "or name another Python: cmake --preset ... -DPython_EXECUTABLE=/path/to/python3")
endif()
message(STATUS "Python ${Python_VERSION}: ${Python_EXECUTABLE}")

if(ESGD_HOROVOD STREQUAL "none")
  return()
endif()

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  message(FATAL_ERROR "Horovod needs a C++17 compiler and none was found. "
    "Install one (Debian: apt-get install g++), load your site's module, or set the environment variable CXX.")
endif()
enable_language(CXX)

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import os, sysconfig; print(os.path.join(sysconfig.get_path('include'), 'Python.h'))"
  OUTPUT_VARIABLE python_header OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT EXISTS "${python_header}")
  message(FATAL_ERROR "Horovod needs Python's headers; ${python_header} does not exist. "
    "Install them (Debian: apt-get install python3-dev).")
endif()

if(ESGD_HOROVOD STREQUAL "nccl")
  if(HOROVOD_CUDA_HOME)
    find_program(ESGD_NVCC nvcc PATHS "${HOROVOD_CUDA_HOME}/bin" NO_DEFAULT_PATH)
  else()
    find_program(ESGD_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  endif()
  mark_as_advanced(ESGD_NVCC)
  if(NOT ESGD_NVCC)
    message(FATAL_ERROR "Horovod on GPUs needs the CUDA toolkit; nvcc was not found. "
      "Load your site's CUDA module or add -DHOROVOD_CUDA_HOME=/path/to/cuda to cmake --preset; "
      "for a cluster without GPUs add -DESGD_HOROVOD=cpu.")
  endif()
  file(REAL_PATH "${ESGD_NVCC}" nvcc)
  cmake_path(GET nvcc PARENT_PATH ESGD_CUDA_HOME)
  cmake_path(GET ESGD_CUDA_HOME PARENT_PATH ESGD_CUDA_HOME)
  message(STATUS "CUDA: ${ESGD_CUDA_HOME}")
endif()
