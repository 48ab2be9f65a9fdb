// The engines for any processor: the compiler's default target.
#include "cpu/prelude.h"

#define FOCAL_CPU_ISA base
#define FOCAL_CPU_FLOAT64
#define FOCAL_CPU_ISA_NAME "base"
#include "cpu/kernels_isa.h"
