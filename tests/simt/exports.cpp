// What the tests ask the emulation in the library that tests/simt/build.py makes, by ctypes.
#include <string>

#include "simt.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT uint64_t focal_simt_launches() { return simt::statistics().launches; }

// Instances of kernels, each set of template arguments by itself: all that the library has, or those launched so far.
// Separated by new lines; valid until the next call.
EXPORT const char* focal_simt_kernels(int launched) {
  static std::string names;
  names.clear();
  for (const auto& [kernel, name] : simt::known_kernels()) {
    if (!launched || simt::statistics().launched.count(kernel)) names += name + "\n";
  }
  return names.c_str();
}

EXPORT void focal_simt_set_seed(uint64_t seed) { simt::set_seed(seed); }
EXPORT uint64_t focal_simt_seed() { return simt::seed(); }
