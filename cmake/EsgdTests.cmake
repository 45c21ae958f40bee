# The tests, under ctest.

enable_testing()

# esgd_add_test(NAME label timeout_seconds num_ranks COMMAND...): num_ranks 0 starts no mpiexec.
function(esgd_add_test name label timeout num_ranks)
  set(command ${ARGN})
  if(num_ranks)
    list(PREPEND command "${ESGD_MPIEXEC}" -n ${num_ranks})
  endif()
  add_test(NAME ${name} COMMAND ${command} WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES
    LABELS ${label} TIMEOUT ${timeout}
    ENVIRONMENT "${ESGD_RANK_ENVIRONMENT};ESGD_OLDER_HDF5=${ESGD_OLDER_HDF5}"
    ENVIRONMENT_MODIFICATION "PATH=path_list_prepend:${ESGD_VENV}/bin")
endfunction()

esgd_add_test(lint.ruff lint 60 0 "${ESGD_PYTHON}" -m ruff check)
esgd_add_test(lint.format lint 60 0 "${ESGD_PYTHON}" -m ruff format --check)
esgd_add_test(lint.mypy lint 600 0 "${ESGD_PYTHON}" -m mypy)
esgd_add_test(lint.codespell lint 60 0 "${ESGD_PYTHON}" -m codespell_lib)

find_program(ESGD_SHELLCHECK shellcheck)
mark_as_advanced(ESGD_SHELLCHECK)
if(ESGD_SHELLCHECK)
  esgd_add_test(lint.shellcheck lint 60 0 "${CMAKE_COMMAND}" "-DSHELLCHECK=${ESGD_SHELLCHECK}"
    "-DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}" -P "${module_dir}/shellcheck.cmake")
else()
  message(STATUS "shellcheck was not found: lint.shellcheck will be skipped (Debian: apt-get install shellcheck)")
  esgd_add_test(lint.shellcheck lint 60 0 "${CMAKE_COMMAND}" -E echo "shellcheck was not found")
  set_tests_properties(lint.shellcheck PROPERTIES SKIP_REGULAR_EXPRESSION "not found")
endif()

esgd_add_test(unit unit 900 0 "${ESGD_PYTHON}" -m pytest tests/unit)
foreach(num_ranks RANGE 1 4)
  # No cache: the ranks would write it at the same time. A rank that waits in vain is ended in the test, not by ctest.
  esgd_add_test(parallel.${num_ranks} parallel 600 ${num_ranks} "${ESGD_PYTHON}" -m pytest tests/parallel
    -p no:cacheprovider --color=no -o faulthandler_timeout=120)
  set_tests_properties(parallel.${num_ranks} PROPERTIES PROCESSORS ${num_ranks})
endforeach()
# The page is one process and a browser; what else starts ranks wants the machine for itself.
set(page tests/system/test_report_page.py)
esgd_add_test(system.page system 600 0 "${ESGD_PYTHON}" -m pytest ${page})
esgd_add_test(system system 3600 0 "${ESGD_PYTHON}" -m pytest tests/system --ignore=${page})
set_tests_properties(system PROPERTIES PROCESSORS 4)
esgd_add_test(slurm slurm 900 0 "${ESGD_PYTHON}" -m pytest tests/slurm)
set_tests_properties(slurm PROPERTIES PROCESSORS 4)
