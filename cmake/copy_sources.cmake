# Copy what the package is built from, so that building it leaves nothing in the source tree nor takes anything stale from it.
# cmake -DFROM=DIR -DTO=DIR -P copy_sources.cmake

file(REMOVE_RECURSE "${TO}")
foreach(name pyproject.toml LICENSE README.md src jobs)
  if(EXISTS "${FROM}/${name}")
    file(COPY "${FROM}/${name}" DESTINATION "${TO}"
      PATTERN "__pycache__" EXCLUDE PATTERN "*.egg-info" EXCLUDE)
  endif()
endforeach()
