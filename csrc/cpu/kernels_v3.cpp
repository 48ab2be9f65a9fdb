// The engines for x86-64-v3 processors (AVX2, FMA).
#include "cpu/prelude.h"

#if defined(__x86_64__)
#pragma GCC target("arch=x86-64-v3")
#if !defined(__clang__)  // see kernels_v4.cpp
#define FOCAL_CPU_AVX
#endif
#define FOCAL_CPU_ISA v3
#define FOCAL_CPU_ISA_NAME "v3"
#include "cpu/kernels_isa.h"
#endif
