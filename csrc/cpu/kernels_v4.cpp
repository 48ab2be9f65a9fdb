// The engines for x86-64-v4 processors (AVX-512), with full-width vectors.
#include "cpu/prelude.h"

#if defined(__x86_64__)
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#if !defined(__clang__)   // which knows no such pragma
#define FOCAL_CPU_AVX512  // gcc 12 does not say so itself: in C++ the pragma defines no __AVX512F__
#endif
#define FOCAL_CPU_ISA v4
#define FOCAL_CPU_ISA_NAME "v4"
#include "cpu/kernels_isa.h"
#endif
