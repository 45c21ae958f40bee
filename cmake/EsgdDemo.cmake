# Train a first population on four ranks; what is finished is only shown again.

set(demo_run "${CMAKE_BINARY_DIR}/run")
set(with_ranks "${CMAKE_COMMAND}" -E env ${ESGD_RANK_ENVIRONMENT} PYTHONUNBUFFERED=1
  --modify "PATH=path_list_prepend:${ESGD_VENV}/bin")
add_custom_target(demo ALL
  COMMAND ${with_ranks} "${ESGD_MPIEXEC}" -n 4 "${ESGD_PYTHON}" -m esgd_hpc run digits --output "${demo_run}"
  COMMAND ${with_ranks} "${ESGD_PYTHON}" -m esgd_hpc inspect "${demo_run}"
  COMMAND ${with_ranks} "${ESGD_PYTHON}" -m esgd_hpc report "${demo_run}"
  COMMAND "${CMAKE_COMMAND}" -E echo "The files of this run are in ${demo_run}"
  COMMAND "${CMAKE_COMMAND}" -E echo "Go on from here with:  . '${CMAKE_BINARY_DIR}/env.sh'"
  COMMENT "Training the recipe digits on four ranks"
  USES_TERMINAL VERBATIM)
add_dependencies(demo environment)
