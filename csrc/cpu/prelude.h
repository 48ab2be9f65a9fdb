// Everything from outside that the engines use, included before any instruction set is chosen: functions of the standard
// library that the linker may share between files must be compiled for every processor.
#pragma once

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <tuple>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/task.h"
#include "math/focal.h"

namespace focal::cpu {

// Scratch memory of the calling thread, 64-byte aligned, kept between calls.
void* thread_scratch(size_t bytes);

}  // namespace focal::cpu
