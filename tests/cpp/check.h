// The few lines the C++ tests need of a test framework: they build with nothing but a compiler.
#pragma once

#include <cstdio>

namespace check {

inline int passed = 0, failed = 0;

inline void that(bool condition, const char* what, const char* file, int line) {
  condition ? ++passed : ++failed;
  if (!condition && failed <= 20) std::printf("%s:%d: expected %s\n", file, line, what);
}

inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) ::check::that((condition), #condition, __FILE__, __LINE__)
