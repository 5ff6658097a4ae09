// The memory of a CUDA device on a CPU, and who touches it: shared memory, buffers, and a record of each of their bytes.
//
// A kernel is compiled with `-fsanitize=thread`, but without that sanitizer's library: its callbacks are here. They know
// each access of a kernel, its thread, and how many barriers that thread has met, so the verdict does not depend on the
// order in which threads run. It is a race where two threads touch one address, at least one of them writing, and
//
// - of a block, without `__syncthreads` between them, nor `__syncwarp` if both are of one warp: nothing else orders memory;
// - of two blocks, in a buffer: nothing orders them at all.
//
// It is an error, too, to touch a byte before or behind a buffer, or more shared memory than the launch asks for. What
// `-fsanitize=undefined` finds (an address that a vector cannot have, an index beyond a local array, a shift too far) ends
// here as well.

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

// Of functions that watch accesses, or do for other threads what is noted apart: theirs are not watched.
#define UNWATCHED __attribute__((no_sanitize("thread")))

struct uint3 {
  unsigned x, y, z;
};

static uint3 threadIdx, blockIdx, blockDim, gridDim;

[[noreturn]] UNWATCHED static void fail(const char* what) {
  std::fprintf(stderr, "%s (block %u %u %u, thread %u %u %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
               threadIdx.y, threadIdx.z);
  _exit(3);
}

UNWATCHED static unsigned thread_number() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

// ---- Barriers ----

// Counts barriers and blocks: what happened at an earlier time of the clock is over.
static uint32_t now;
// When the block began, when it last met at a barrier, and when each of its warps did.
static uint32_t block_began, block_met, warps_met[32];

static void begin_block() { block_began = block_met = ++now; }
static void block_meets() { block_met = ++now; }
static void warp_meets(unsigned warp) { warps_met[warp] = ++now; }

// ---- Accesses ----

// The last access of a kind to an address: its thread, or `several` of a warp, or `several` warps; and the barriers before it.
struct Access {
  static const uint16_t several = 0xffff;
  uint32_t block_met, warp_met;
  uint16_t thread, warp;
};

// Of two bytes: nothing smaller is written by threads side by side.
struct Touched {
  Access read, write;
};

struct Region {
  const char* name;
  unsigned char *begin, *end;
  // All that is mapped for it.
  unsigned char *first, *last;
  Touched* touched;
};

UNWATCHED static bool is_unordered(const Access& before, const Access& access) {
  if (before.block_met == 0) return false;
  if (before.block_met < block_began) return true;
  if (before.block_met != access.block_met || before.thread == access.thread) return false;
  return before.warp != access.warp || before.warp_met == access.warp_met;
}

// A read beside those before it that are not over.
UNWATCHED static void remember(Access& reads, const Access& read) {
  const bool is_open = reads.block_met && (reads.block_met < block_began || reads.block_met == read.block_met);
  if (!is_open || (reads.thread == read.thread && reads.block_met == read.block_met)) {
    reads = read;
  } else if (reads.warp != read.warp || reads.block_met != read.block_met) {
    // Whoever writes next writes beside another warp; or beside another block, which stays so.
    reads.warp = reads.thread = Access::several;
    if (reads.block_met > read.block_met) reads.block_met = read.block_met;
  } else {
    reads.thread = reads.warp_met == read.warp_met ? Access::several : read.thread;
    reads.warp_met = read.warp_met;
  }
}

[[noreturn]] static void fail_at(const char* what, const Region& region, const void* address, int other = -1) {
  static char text[256], beside[32];
  const int at = int(static_cast<const unsigned char*>(address) - region.begin);
  if (other >= 0 && other != Access::several) std::snprintf(beside, sizeof beside, ", after thread number %d", other);
  std::snprintf(text, sizeof text, "%s: byte %d of %s%s", what, at, region.name, beside);
  fail(text);
}

// A thread of the block touches memory of a region.
UNWATCHED static void touch(Region& region, const void* start, size_t size, bool is_write, unsigned thread) {
  const auto* address = static_cast<const unsigned char*>(start);
  if (address < region.begin || address + size > region.end)
    fail_at("a thread touches memory beside what it is given", region, address);
  const Access access{block_met, warps_met[thread / 32], uint16_t(thread), uint16_t(thread / 32)};
  const size_t begin = size_t(address - region.begin) / 2, end = (size_t(address - region.begin) + size + 1) / 2;
  for (Touched* at = region.touched + begin; at != region.touched + end; ++at) {
    if (is_unordered(at->write, access))
      fail_at("a thread touches what another wrote, without a barrier between them", region, address, at->write.thread);
    if (!is_write) {
      remember(at->read, access);
      continue;
    }
    if (is_unordered(at->read, access))
      fail_at("a thread writes what another read, without a barrier between them", region, address, at->read.thread);
    at->write = access;
  }
}

// ---- Shared memory ----

static size_t in_pages(size_t size) {
  static const size_t page = size_t(sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

// More than any card gives a block, in whole pages; and what the launch asks for.
alignas(1 << 16) unsigned char dynamic_shared_mem[1 << 18];
static size_t shared_size;
static Region shared_region;

static Touched* untouched(size_t size) {
  const size_t bytes = in_pages((size / 2 + 1) * sizeof(Touched));
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) fail("no memory");
  return static_cast<Touched*>(at);
}

static void give_shared(size_t size) {
  if (size > sizeof dynamic_shared_mem) fail("the launch asks for more shared memory than there is");
  shared_size = size;
  unsigned char* const begin = dynamic_shared_mem;
  shared_region = {"shared memory", begin, begin + size, begin, begin + sizeof dynamic_shared_mem, untouched(size)};
  const size_t touchable = in_pages(size);
  mprotect(begin + touchable, sizeof dynamic_shared_mem - touchable, PROT_NONE);
}

// As NaNs, to a block that touches it first.
static void renew_shared() {
  std::memset(dynamic_shared_mem, 0xff, in_pages(shared_size));
  std::memset(static_cast<void*>(shared_region.touched), 0, (shared_size + 1) / 2 * sizeof(Touched));
}

// ---- Buffers ----

static Region buffer_regions[2048];
static size_t buffer_count;
static unsigned char *arena, *arena_end, *arena_free;

// Memory of `size` bytes that ends with a page, but for what an alignment of 32 bytes leaves, before pages that nobody
// may touch.
UNWATCHED static unsigned char* new_buffer(size_t size) {
  const size_t arena_size = size_t(1) << 36;
  if (!arena) {
    void* at = mmap(nullptr, arena_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) fail("no memory");
    arena = arena_free = arena_end = static_cast<unsigned char*>(at);
    arena_end += arena_size;
  }
  const size_t pages = in_pages(size);
  unsigned char* const first = arena_free;
  arena_free += pages + (1 << 20);
  if (arena_free > arena_end || mprotect(first, pages, PROT_READ | PROT_WRITE)) fail("no memory");
  unsigned char* const begin = first + (pages - (size + 31) / 32 * 32);
  if (buffer_count == sizeof buffer_regions / sizeof *buffer_regions) fail("more buffers than there is room for");
  buffer_regions[buffer_count++] = {"a buffer", begin, begin + size, first, arena_free, untouched(size)};
  return begin;
}

UNWATCHED static void access(const void* address, size_t size, bool is_write) {
  const auto* at = static_cast<const unsigned char*>(address);
  if (at >= shared_region.first && at < shared_region.last) {
    touch(shared_region, address, size, is_write, thread_number());
  } else if (at >= arena && at < arena_end) {
    static size_t last;
    const auto is_in = [at](const Region& region) UNWATCHED { return at >= region.first && at < region.last; };
    if (!is_in(buffer_regions[last]))
      for (last = 0; last < buffer_count && !is_in(buffer_regions[last]);) ++last;
    if (last == buffer_count) fail("a thread touches memory that is neither a buffer's nor shared");
    touch(buffer_regions[last], address, size, is_write, thread_number());
  }
}

// ---- What compiled kernels call ----

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
UNWATCHED void __tsan_read_range(void* address, unsigned long size) { access(address, size, false); }
UNWATCHED void __tsan_write_range(void* address, unsigned long size) { access(address, size, true); }
#define ACCESSES(size)                                                             \
  UNWATCHED void __tsan_read##size(void* address) { access(address, size, false); } \
  UNWATCHED void __tsan_write##size(void* address) { access(address, size, true); } \
  UNWATCHED void __tsan_unaligned_read##size(void* address) { access(address, size, false); } \
  UNWATCHED void __tsan_unaligned_write##size(void* address) { access(address, size, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

// Where a program does what C++ does not define: what each handler's first argument begins with.
struct Place {
  const char* file;
  unsigned line, column;
};
#define UNDEFINED(handler, what)                                                                 \
  void __ubsan_handle_##handler(const Place* place) {                                            \
    static char text[256];                                                                       \
    std::snprintf(text, sizeof text, "%s, line %u column %u of the program", what, place->line, place->column); \
    fail(text);                                                                                  \
  }
UNDEFINED(type_mismatch_v1, "an address that its type cannot have")
UNDEFINED(out_of_bounds, "an index beyond a local array")
UNDEFINED(shift_out_of_bounds, "a shift by more bits than there are")
UNDEFINED(divrem_overflow, "a division by zero")
}
