# Before project(): CMake's own message about a missing make names no remedy.

if(CMAKE_GENERATOR MATCHES "Makefiles")
  find_program(ESGD_MAKE NAMES gmake make)
  mark_as_advanced(ESGD_MAKE)
  if(NOT ESGD_MAKE)
    message(FATAL_ERROR "make was not found. Install it (Debian: apt-get install make), or take Ninja: "
      "CMAKE_GENERATOR=Ninja cmake --workflow --preset ...")
  endif()
endif()
