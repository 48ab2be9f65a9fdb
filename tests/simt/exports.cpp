// What the tests ask the emulation in the library that tests/simt/build.py makes, by ctypes.
#include <string>

#include "simt.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT uint64_t focal_simt_launches() { return simt::statistics().launches; }

// Instances of kernels, each set of template arguments by itself.
EXPORT uint64_t focal_simt_kernels() { return simt::statistics().kernels.size(); }

// Separated by new lines; valid until the next call.
EXPORT const char* focal_simt_names() {
  static std::string names;
  names.clear();
  for (const std::string& name : simt::statistics().names) names += name + "\n";
  return names.c_str();
}

EXPORT void focal_simt_set_seed(uint64_t seed) { simt::set_seed(seed); }
EXPORT uint64_t focal_simt_seed() { return simt::seed(); }
