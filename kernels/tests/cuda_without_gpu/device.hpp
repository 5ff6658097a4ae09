// A CUDA device on a CPU: what the CUDA C++ that CubeCL writes needs of the language, of a warp and of tensor cores.
//
// A program is `memory.hpp`, this file, one kernel, and `main` with a call of `launch(kernel)`. It reads a launch from standard input,
// runs it and writes the buffers to standard output. The threads of a block are fibers, one of which runs until it must
// wait for others; between two such points they run in a shuffled order.
//
// A warp's operation (a product, a shuffle) is done by the lane that arrives last, for all. Where lanes of a warp wait for
// different things, or for lanes that have ended, a real card may hang or worse: here the program ends and says so.

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

static const unsigned warpSize = 32;
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// ---- Numbers ----

// Rounds a float to an exponent of `exponent` bits and `mantissa` bits, to nearest, ties to even, as the bits of a
// 16-bit number.
static uint16_t narrowed(float value, int exponent, int mantissa) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint16_t infinity = uint16_t(((1 << exponent) - 1) << mantissa);
  if (std::isnan(value)) return uint16_t(sign | infinity | 1 << (mantissa - 1));
  if (std::isinf(value) || value == 0) return uint16_t(sign | (value == 0 ? 0 : infinity));
  const int bias = (1 << (exponent - 1)) - 1;
  const int smallest = 1 - bias;
  const int scale = std::max(std::ilogb(value), smallest);
  // Of the last place: exact, as is the division by a power of two.
  const double steps = std::nearbyint(std::ldexp(std::fabs(double(value)), mantissa - scale));
  const uint32_t magnitude = uint32_t(scale - smallest) << mantissa;
  const uint32_t rounded = magnitude + uint32_t(steps);
  return uint16_t(sign | std::min<uint32_t>(rounded, infinity));
}

static float widened(uint16_t bits, int exponent, int mantissa) {
  const int biased = bits >> mantissa & ((1 << exponent) - 1);
  const int fraction = bits & ((1 << mantissa) - 1);
  const int bias = (1 << (exponent - 1)) - 1;
  float value;
  if (biased == (1 << exponent) - 1) {
    value = fraction ? NAN : INFINITY;
  } else if (biased == 0) {
    value = std::ldexp(float(fraction), 1 - bias - mantissa);
  } else {
    value = std::ldexp(float(fraction + (1 << mantissa)), biased - bias - mantissa);
  }
  return bits & 0x8000 ? -value : value;
}

template <int exponent, int mantissa>
struct Narrow {
  uint16_t bits;
  Narrow() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit Narrow(T value) : bits(narrowed(float(value), exponent, mantissa)) {}
  explicit operator float() const { return widened(bits, exponent, mantissa); }
};
using __half = Narrow<5, 10>;
using __nv_bfloat16 = Narrow<8, 7>;
struct __align__(4) __half2 {
  __half x, y;
};
struct __align__(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

template <class A, class B>
static std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
static std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
// Without it the one of C, which is of integers.
using std::abs;
using std::exp;
using std::log;
using std::sqrt;
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// ---- Threads ----

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  char* stack;
  uint3 index;
  bool has_begun, has_ended, waits;
};

static std::vector<Fiber> fibers;
static Fiber* running;
static jmp_buf scheduler;
static void (*body)();

static void begin() {
  body();
  running->has_ended = true;
  _longjmp(scheduler, 1);
}

static void yield() {
  running->waits = true;
  if (!_setjmp(running->at)) _longjmp(scheduler, 1);
}

// What several threads meet at: the last to arrive does the work of all.
struct Meeting {
  const char* what;
  unsigned arrived;
  void* arguments[32];
};

static Meeting block_meeting;
static Meeting warp_meetings[32];

// The lanes `first..first + count` go on.
static void release(Meeting& meeting, unsigned first, unsigned count) {
  meeting.arrived = 0;
  for (unsigned thread = first; thread < first + count; ++thread) fibers[thread].waits = false;
}

// All lanes of a warp call it with arguments of one type; `work` gets those of all, by lane.
template <class Arguments, class Work>
static void together(const char* what, Arguments& arguments, Work work) {
  const unsigned thread = thread_number();
  Meeting& meeting = warp_meetings[thread / 32];
  if (meeting.arrived && std::strcmp(meeting.what, what)) fail("lanes of a warp wait for different things");
  meeting.what = what;
  meeting.arguments[thread % 32] = &arguments;
  if (++meeting.arrived < 32) return yield();
  Arguments* of[32];
  for (int lane = 0; lane < 32; ++lane) of[lane] = static_cast<Arguments*>(meeting.arguments[lane]);
  work(of);
  release(meeting, thread / 32 * 32, 32);
}

static void __syncwarp() {
  char nothing;
  together("__syncwarp", nothing, [](char**) { warp_meets(thread_number() / 32); });
}

// Lanes that do something together, which orders no memory.
static void converge(const char* what) {
  char nothing;
  together(what, nothing, [](char**) {});
}

static void __syncthreads() {
  if (++block_meeting.arrived < fibers.size()) return yield();
  block_meets();
  release(block_meeting, 0, unsigned(fibers.size()));
}

template <class T>
static T __shfl_xor_sync(unsigned mask, T value, unsigned with) {
  if (mask != 0xffffffff) fail("a shuffle among some lanes");
  struct {
    T value, other;
    unsigned with;
  } lane{value, value, with};
  together("__shfl_xor_sync", lane, [](auto** of) {
    for (unsigned i = 0; i < 32; ++i) of[i]->other = of[i ^ of[i]->with]->value;
  });
  return lane.other;
}

static int __any_sync(unsigned mask, int is_so) {
  if (mask != 0xffffffff) fail("a vote among some lanes");
  together("__any_sync", is_so, [](int** of) {
    const bool any = std::any_of(of, of + 32, [](int* is_so) { return *is_so; });
    for (int lane = 0; lane < 32; ++lane) *of[lane] = any;
  });
  return is_so;
}

// ---- Tensor cores: PTX ----

static uint32_t __cvta_generic_to_shared(const void* address) {
  return uint32_t(static_cast<const unsigned char*>(address) - dynamic_shared_mem);
}

// `count` matrices of 8 × 8 numbers of 16 bits, loaded or stored: lane 8 i + r names row r of the i-th, and lane l has two
// numbers of row l / 4 of each, or of column l / 4.
template <int count, bool stores, bool transposed>
static void move_matrices(const char* what, uint32_t address, uint32_t* const (&registers)[count]) {
  struct {
    uint32_t* const* registers;
    uint32_t address;
  } lane{registers, address};
  together(what, lane, [](auto** of) UNWATCHED {
    const unsigned first = thread_number() / 32 * 32;
    for (int row = 0; row < 8 * count; ++row) {
      const uint32_t start = of[row]->address;
      if (start % 16 || start + 16 > shared_size) fail("ldmatrix or stmatrix at an address that it cannot take");
    }
    for (int i = 0; i < 32; ++i) {
      for (int matrix = 0; matrix < count; ++matrix) {
        uint16_t pair[2];
        std::memcpy(pair, of[i]->registers[matrix], 4);
        for (int k = 0; k < 2; ++k) {
          const int along = 2 * (i % 4) + k;
          const int row = transposed ? along : i / 4, column = transposed ? i / 4 : along;
          unsigned char* const element = dynamic_shared_mem + of[8 * matrix + row]->address + 2 * column;
          // By the lane that has the element, whichever names the row.
          touch(shared_region, element, 2, stores, first + i);
          if (stores) {
            std::memcpy(element, &pair[k], 2);
          } else {
            std::memcpy(&pair[k], element, 2);
          }
        }
        std::memcpy(of[i]->registers[matrix], pair, 4);
      }
    }
  });
}

// Loads have registers, then an address; stores an address, then registers.
#define MATRICES(count, is_transposed, suffix)                                                                    \
  template <class... All>                                                                                         \
  static void ldmatrix_sync_aligned_m8n8_x##count##suffix##_shared__cta_b16(All&... all) {                        \
    uint32_t* given[] = {&all...};                                                                                \
    uint32_t* registers[count];                                                                                   \
    static_assert(sizeof...(all) == count + 1, "registers, then an address");                                     \
    std::copy(given, given + count, registers);                                                                   \
    move_matrices<count, false, is_transposed>("ldmatrix x" #count #suffix, *given[count], registers);            \
  }                                                                                                               \
  template <class... All>                                                                                         \
  static void stmatrix_sync_aligned_m8n8_x##count##suffix##_shared__cta_b16(uint32_t address, const All&... all) { \
    static_assert(sizeof...(all) == count, "an address, then registers");                                         \
    uint32_t values[] = {all...};                                                                                 \
    uint32_t* registers[count];                                                                                   \
    for (int i = 0; i < count; ++i) registers[i] = values + i;                                                    \
    move_matrices<count, true, is_transposed>("stmatrix x" #count #suffix, address, registers);                   \
  }
MATRICES(1, false, )
MATRICES(2, false, )
MATRICES(4, false, )
MATRICES(1, true, _trans)
MATRICES(2, true, _trans)
MATRICES(4, true, _trans)

// d = a · b + c of 16 × 8 × k, by the layout of fragments that the PTX manual gives. The sum of one element is rounded
// once; tensor cores promise no order.
template <class T, int k>
static void multiply(const char* what, float* (&d)[4], const uint32_t* (&a)[k / 4], const uint32_t* (&b)[k / 8],
                     const float* (&c)[4]) {
  struct {
    float** d;
    const uint32_t **a, **b;
    const float** c;
  } lane{d, a, b, c};
  together(what, lane, [](auto** of) {
    static float as[16][k], bs[k][8];
    for (int i = 0; i < 32; ++i) {
      const int group = i / 4, pair = 2 * (i % 4);
      for (int r = 0; r < k / 4; ++r) {
        T two[2];
        std::memcpy(two, of[i]->a[r], 4);
        for (int e = 0; e < 2; ++e) as[group + 8 * (r % 2)][pair + e + 8 * (r / 2)] = float(two[e]);
      }
      for (int r = 0; r < k / 8; ++r) {
        T two[2];
        std::memcpy(two, of[i]->b[r], 4);
        for (int e = 0; e < 2; ++e) bs[pair + e + 8 * r][group] = float(two[e]);
      }
    }
    for (int i = 0; i < 32; ++i) {
      for (int r = 0; r < 4; ++r) {
        const int row = i / 4 + 8 * (r / 2), column = 2 * (i % 4) + r % 2;
        double sum = *of[i]->c[r];
        for (int at = 0; at < k; ++at) sum += double(as[row][at]) * bs[at][column];
        *of[i]->d[r] = float(sum);
      }
    }
  });
}

#define MMA_M16N8K16(name, T)                                                                                          \
  static void mma_sync_aligned_m16n8k16_row_col_f32_##name##_##name##_f32(                                             \
      float& d0, float& d1, float& d2, float& d3, const uint32_t& a0, const uint32_t& a1, const uint32_t& a2,          \
      const uint32_t& a3, const uint32_t& b0, const uint32_t& b1, const float& c0, const float& c1, const float& c2,   \
      const float& c3) {                                                                                               \
    float* d[] = {&d0, &d1, &d2, &d3};                                                                                 \
    const uint32_t *a[] = {&a0, &a1, &a2, &a3}, *b[] = {&b0, &b1};                                                     \
    const float* c[] = {&c0, &c1, &c2, &c3};                                                                           \
    multiply<T, 16>("mma m16n8k16", d, a, b, c);                                                                       \
  }
MMA_M16N8K16(bf16, __nv_bfloat16)
MMA_M16N8K16(f16, __half)

static void mma_sync_aligned_m16n8k8_row_col_f32_f16_f16_f32(float& d0, float& d1, float& d2, float& d3,
                                                             const uint32_t& a0, const uint32_t& a1, const uint32_t& b0,
                                                             const float& c0, const float& c1, const float& c2,
                                                             const float& c3) {
  float* d[] = {&d0, &d1, &d2, &d3};
  const uint32_t *a[] = {&a0, &a1}, *b[] = {&b0};
  const float* c[] = {&c0, &c1, &c2, &c3};
  multiply<__half, 8>("mma m16n8k8", d, a, b, c);
}

// ---- Tensor cores: C++ ----

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

// Nobody may know which lane holds which element; here lane l holds elements l, l + 32, ... in row-major order.
template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? k : n;
  static constexpr int num_elements = rows * columns / 32;
  T x[num_elements];
};

template <class T>
static void check(const char* what, const T* address, unsigned stride) {
  // In bytes: 32 for the address, 16 for the stride of 16-bit numbers and floats alike.
  if (reinterpret_cast<uintptr_t>(address) % 32 || stride * sizeof(T) % 16) fail(what);
}

// Calls `visit(element of this lane, its address)`.
template <class Fragment, class T, class Visit>
static void each(Fragment& fragment, T* address, unsigned stride, bool is_row_major, Visit visit) {
  const unsigned lane = thread_number() % 32;
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const unsigned element = lane + 32 * i;
    const unsigned row = element / Fragment::columns, column = element % Fragment::columns;
    visit(fragment.x[i], address[is_row_major ? row * stride + column : column * stride + row]);
  }
}

template <class Use, int m, int n, int k, class T, class Layout>
static void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& to, const T* address, unsigned stride) {
  check("a fragment is loaded from an address or with a stride that it cannot take", address, stride);
  each(to, address, stride, std::is_same_v<Layout, row_major>, [](T& x, const T& y) { x = y; });
  converge("wmma::load_matrix_sync");
}

template <int m, int n, int k, class T>
static void load_matrix_sync(fragment<accumulator, m, n, k, T>& to, const T* address, unsigned stride, layout_t layout) {
  check("sums are loaded from an address or with a stride that they cannot take", address, stride);
  each(to, address, stride, layout == mem_row_major, [](T& x, const T& y) { x = y; });
  converge("wmma::load_matrix_sync");
}

template <int m, int n, int k, class T>
static void store_matrix_sync(T* address, const fragment<accumulator, m, n, k, T>& from, unsigned stride,
                              layout_t layout) {
  check("sums are stored to an address or with a stride that they cannot take", address, stride);
  each(from, address, stride, layout == mem_row_major, [](const T& x, T& y) { y = x; });
  converge("wmma::store_matrix_sync");
}

template <class Fragment, class T>
static void fill_fragment(Fragment& fragment, T value) {
  std::fill(std::begin(fragment.x), std::end(fragment.x), value);
}

template <class D, class A, class B, class C>
static void mma_sync(D& d, const A& a, const B& b, const C& c) {
  struct {
    D* d;
    const A* a;
    const B* b;
    const C* c;
  } lane{&d, &a, &b, &c};
  together("wmma::mma_sync", lane, [](auto** of) {
    static float as[A::rows * A::columns], bs[B::rows * B::columns];
    for (int i = 0; i < A::rows * A::columns; ++i) as[i] = float(of[i % 32]->a->x[i / 32]);
    for (int i = 0; i < B::rows * B::columns; ++i) bs[i] = float(of[i % 32]->b->x[i / 32]);
    for (int i = 0; i < D::rows * D::columns; ++i) {
      const int row = i / D::columns, column = i % D::columns;
      double sum = of[i % 32]->c->x[i / 32];
      for (int at = 0; at < A::columns; ++at) sum += double(as[row * A::columns + at]) * bs[at * B::columns + column];
      of[i % 32]->d->x[i / 32] = float(sum);
    }
  });
}

}  // namespace wmma
}  // namespace nvcuda

// ---- A launch ----

static void read_all(void* to, size_t size) {
  if (size && std::fread(to, 1, size, stdin) != size) {
    std::fprintf(stderr, "the launch ends early\n");
    _exit(4);
  }
}

static uint64_t read_word() {
  uint64_t word;
  read_all(&word, 8);
  return word;
}

static void on_fault(int) { fail("a thread touches memory that is neither a buffer's nor shared"); }

static const size_t stack_size = 1 << 20;

static void run_block(uint64_t& seed, const std::vector<uint3>& indices) {
  renew_shared();
  begin_block();
  block_meeting.arrived = 0;
  for (Meeting& meeting : warp_meetings) meeting.arrived = 0;
  std::vector<unsigned> order(fibers.size());
  for (unsigned i = 0; i < order.size(); ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = indices[i];
    fiber.has_begun = fiber.has_ended = fiber.waits = false;
    order[i] = i;
  }
  for (bool is_over = false; !is_over;) {
    is_over = true;
    bool has_moved = false;
    for (size_t i = order.size(); i > 1; --i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i - 1], order[(seed >> 33) % i]);
    }
    for (unsigned thread : order) {
      Fiber& fiber = fibers[thread];
      if (fiber.has_ended) continue;
      is_over = false;
      if (fiber.waits) continue;
      has_moved = true;
      running = &fiber;
      threadIdx = fiber.index;
      if (!_setjmp(scheduler)) {
        if (fiber.has_begun) _longjmp(fiber.at, 1);
        fiber.has_begun = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack;
        fiber.start.uc_stack.ss_size = stack_size;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, begin, 0);
        setcontext(&fiber.start);
      }
    }
    if (!is_over && !has_moved) fail("threads wait for threads that never come");
  }
}

static std::vector<void*> buffers;
static std::vector<uint64_t> constants;

template <class T>
static T argument(size_t index) {
  if constexpr (std::is_pointer_v<T>) {
    if (index >= buffers.size()) fail("the kernel wants more buffers than it is given");
    return static_cast<T>(buffers[index]);
  } else {
    if (sizeof(T) > constants.size() * 8) fail("the kernel wants more constants than it is given");
    T value;
    std::memcpy(&value, constants.data(), sizeof(T));
    return value;
  }
}

template <class... T, size_t... index>
static void call(void (*kernel)(T...), std::index_sequence<index...>) {
  kernel(argument<T>(index)...);
}

// Runs the launch that standard input holds, in words of 64 bits: grid, block, bytes of shared memory, seed; the constants'
// number and the constants; the buffers' number; and for each its size and bytes, or, where it is the n-th buffer over again, 2⁶³ + n.
template <class... T>
static int launch(void (*kernel)(T...)) {
  uint64_t sizes[6];
  for (uint64_t& size : sizes) size = read_word();
  gridDim = {unsigned(sizes[0]), unsigned(sizes[1]), unsigned(sizes[2])};
  blockDim = {unsigned(sizes[3]), unsigned(sizes[4]), unsigned(sizes[5])};
  give_shared(read_word());
  uint64_t seed = read_word();
  constants.resize(read_word());
  read_all(constants.data(), constants.size() * 8);
  std::vector<std::pair<void*, size_t>> distinct;
  for (uint64_t left = read_word(); left; --left) {
    const uint64_t size = read_word();
    if (size >> 63) {
      buffers.push_back(buffers[size & ~(uint64_t(1) << 63)]);
      continue;
    }
    void* memory = new_buffer(size);
    read_all(memory, size);
    distinct.push_back({memory, size});
    buffers.push_back(memory);
  }

  std::vector<uint3> indices;
  for (unsigned z = 0; z < blockDim.z; ++z)
    for (unsigned y = 0; y < blockDim.y; ++y)
      for (unsigned x = 0; x < blockDim.x; ++x) indices.push_back({x, y, z});
  fibers.resize(indices.size());
  for (Fiber& fiber : fibers) {
    void* stack = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory");
    fiber.stack = static_cast<char*>(stack);
  }
  static char signal_stack[65536];
  stack_t alternative{};
  alternative.ss_sp = signal_stack;
  alternative.ss_size = sizeof signal_stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action {};
  action.sa_handler = on_fault;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);

  static void (*called)(T...);
  called = kernel;
  body = [] { call(called, std::index_sequence_for<T...>{}); };
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block(seed, indices);
  for (auto [memory, size] : distinct) std::fwrite(memory, 1, size, stdout);
  return std::fflush(stdout) ? 5 : 0;
}
