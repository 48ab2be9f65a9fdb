// What kernels are written with: CUDA's built-ins, from the toolkit or, where kernels run without a GPU, from the
// emulation in tests/simt; shared memory, launches and clusters behind names that exist in both.
// Must not know: the loss, torch.
#pragma once

#if defined(FOCAL_SIMT)
#include "simt.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>

#define FOCAL_DEVICE __device__ __forceinline__

// A variable of the block. Its content is undefined until it is written.
#if defined(FOCAL_SIMT)
#define FOCAL_SHARED(Type, name)    \
  static const char name##_key = 0; \
  Type& name = simt::shared<Type>(&name##_key)
#else
#define FOCAL_SHARED(Type, name) __shared__ Type name
#endif

namespace focal::cuda {

// Memory of the block of the size given at the launch, 16-byte aligned.
FOCAL_DEVICE unsigned char* dynamic_shared() {
#if defined(FOCAL_SIMT)
  return simt::dynamic_shared();
#else
  extern __shared__ __align__(16) unsigned char focal_dynamic_shared[];
  return focal_dynamic_shared;
#endif
}

struct Grid {
  int64_t blocks;
  unsigned threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks that run together and read each other's shared memory; > 1 needs sm_90
};

// The one place where kernels are started. Asynchronous; the error is that of the launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > 0x7fffffff) return cudaErrorInvalidValue;
#if defined(FOCAL_SIMT)
  (void)stream;
  simt::launch(name, kernel, dim3(static_cast<unsigned>(grid.blocks)), dim3(grid.threads), grid.shared_bytes,
               grid.cluster, arguments...);
  return cudaSuccess;
#else
  (void)name;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = grid.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  if (grid.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  return error == cudaSuccess ? cudaGetLastError() : error;
#endif
}

}  // namespace focal::cuda

#if defined(FOCAL_SIMT)
#define FOCAL_LAUNCH(grid, stream, kernel, ...) \
  ((void)simt::Known<kernel>::said, ::focal::cuda::launch(#kernel, kernel, grid, stream, __VA_ARGS__))
#else
#define FOCAL_LAUNCH(grid, stream, kernel, ...) ::focal::cuda::launch(#kernel, kernel, grid, stream, __VA_ARGS__)
#endif
