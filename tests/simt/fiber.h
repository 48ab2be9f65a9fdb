// Stacks to run on in turn. Switching is a dozen instructions; where there is no assembly for it, ucontext does it with
// two system calls. Must not know: threads of a kernel.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <stdexcept>

#if !defined(__x86_64__) || !defined(__ELF__)
#define FOCAL_SIMT_UCONTEXT
#endif
#ifdef FOCAL_SIMT_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt::detail {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 << 10;  // its frames are several times as large
#else
constexpr size_t kStack = 64 << 10;
#endif

// What is left and gone on from: the state of a host thread or of a fiber.
struct Context {
#ifdef FOCAL_SIMT_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer;
#endif
  // For the address sanitizer, which must know what is a stack.
  const void* bottom;
  size_t size;
  void* fake_stack;
};

struct Fiber {
  Context context{};
  unsigned char* stack = nullptr;
  size_t colour = 0;  // unused bytes at its top: stacks a multiple of a page apart would share a few sets of the cache
};

#ifndef FOCAL_SIMT_UCONTEXT
// Saves what a call must preserve, and goes on where another stack did the same. At file level and not inline, so that
// the compiler takes it for an unknown function, which may change any variable.
extern "C" __attribute__((visibility("hidden"))) void focal_simt_switch(void** save, void* load);
asm(R"(
  .pushsection .text.focal_simt_switch,"axG",@progbits,focal_simt_switch,comdat
  .weak focal_simt_switch
  .hidden focal_simt_switch
  .type focal_simt_switch,@function
focal_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size focal_simt_switch, . - focal_simt_switch
  .popsection
)");
#endif

// Every arrival on a stack passes here, also the first.
inline void arrived([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

inline void switch_context(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef FOCAL_SIMT_UCONTEXT
  swapcontext(&from.state, &to.state);
#else
  focal_simt_switch(&from.stack_pointer, to.stack_pointer);
#endif
  arrived(from.fake_stack);
}

// The context of the host thread that calls this.
inline Context host_context() {
  Context context{};
#ifdef __SANITIZE_ADDRESS__
  pthread_attr_t attributes;
  void* bottom = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &bottom, &context.size);
    pthread_attr_destroy(&attributes);
  }
  context.bottom = bottom;
#endif
  return context;
}

// To the start of main, which never returns, whatever was on the stack before.
inline void rewind(Fiber& fiber, void (*main)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack, kStack);
#endif
#ifdef FOCAL_SIMT_UCONTEXT
  getcontext(&fiber.context.state);
  fiber.context.state.uc_stack.ss_sp = fiber.stack;
  fiber.context.state.uc_stack.ss_size = kStack - fiber.colour;
  makecontext(&fiber.context.state, main, 0);
#else
  // Six registers, the address to go to, and as if that had been called from nowhere.
  void** top = reinterpret_cast<void**>(fiber.stack + kStack - fiber.colour) - 8;
  std::memset(top, 0, 8 * sizeof(void*));
  top[6] = reinterpret_cast<void*>(main);
  fiber.context.stack_pointer = top;
#endif
}

// Its memory costs nothing until it is used. Never freed: fibers serve every later launch.
inline std::unique_ptr<Fiber> make_fiber(size_t number, void (*main)()) {
  // Below the stack a page that nobody may touch: an overflow must not run into another fiber.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0)
    throw std::runtime_error("simt: no memory for the stack of another fiber");
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = static_cast<unsigned char*>(memory) + page;
  fiber->colour = number * 320 % 4096;
  fiber->context.bottom = fiber->stack;
  fiber->context.size = kStack;
  rewind(*fiber, main);
  return fiber;
}

}  // namespace simt::detail
