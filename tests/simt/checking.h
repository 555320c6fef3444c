// What the tests of kernels share: numbers of chance, buffers whose ends are watched, comparisons.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/device.cuh"

namespace sparseprune::cuda {

inline std::mt19937 numbers(7);
inline std::string current;  // what is checked
inline bool brief = false;   // a few shapes: under ThreadSanitizer every thread costs a millisecond
inline int checks = 0;

[[noreturn]] inline void fail(const std::string& what) {
  fprintf(stderr, "FAILED: %s: %s\n", current.c_str(), what.c_str());
  exit(1);
}

inline double uniform() { return std::uniform_real_distribution<double>(-1, 1)(numbers); }

// Exactly as long as it says, 16-byte aligned: AddressSanitizer sees what goes beyond.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : n_(n), data_(new char[size_t(n) * sizeof(T)]) {
    memset(data_.get(), 0xff, bytes());
  }
  static Buffer random(int64_t n) {
    Buffer result(n);
    for (int64_t i = 0; i < n; ++i) result[i] = T(float(uniform()));
    return result;
  }
  T* data() const { return reinterpret_cast<T*>(data_.get()); }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return n_; }
  size_t bytes() const { return size_t(n_) * sizeof(T); }

 private:
  int64_t n_;
  std::unique_ptr<char[]> data_;
};

// Half of the distance between neighbouring numbers of T, relative to them, and the smallest of them.
template <class T>
constexpr double unit = std::is_same_v<T, float>  ? 0x1p-24
                        : std::is_same_v<T, Half> ? 0x1p-11
                                                  : 0x1p-8;
template <class T>
constexpr double smallest = std::is_same_v<T, Half>    ? 0x1p-24
                            : std::is_same_v<T, float> ? 0x1p-149
                                                       : 0x1p-133;

// gamma_n = n u / (1 - n u) bounds the relative error of n roundings to float32, one after the other.
inline double gamma(double roundings) { return roundings * unit<float> / (1 - roundings * unit<float>); }

// A result within `error` of what is expected, before it was rounded to T.
template <class T>
void expect_close(double got, double expected, double error, int64_t at) {
  ++checks;
  const double bound = error + unit<T> * (std::abs(expected) + error) + smallest<T>;
  const bool same = std::isnan(expected) ? std::isnan(got) : got == expected || std::abs(got - expected) <= bound;
  if (!same)
    fail("number " + std::to_string(at) + " is " + std::to_string(got) + ", expected " + std::to_string(expected) +
         " within " + std::to_string(bound));
}

// A sum of so many products, added up in float32 in any order, fused or not: gamma_n * sum of |terms| (Higham,
// Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). `magnitude` is that sum. Tensor cores may
// round each addition towards zero, which counts twice.
template <class T>
void expect_sum(double got, double sum, double magnitude, int64_t terms, int64_t at, int roundings_of_a_term = 1) {
  // One rounding more for a product, and one for the bias.
  expect_close<T>(got, sum, gamma(double(roundings_of_a_term * terms + 2)) * magnitude, at);
}

inline void expect_same(double got, double expected, int64_t at) {
  ++checks;
  if (std::isnan(expected) ? !std::isnan(got) : got != expected)
    fail("number " + std::to_string(at) + " is " + std::to_string(got) + ", expected " + std::to_string(expected));
}

// A copy of exactly its size, so that reading beyond is seen.
template <class T>
Buffer<T> exactly(const std::vector<T>& from) {
  Buffer<T> result(int64_t(from.size()));
  std::copy(from.begin(), from.end(), result.data());
  return result;
}

// kernels [brief] [seed ...]: run() for each of these orders of threads; 0 where none is named.
inline int main_of_test(int argc, char** argv, void (*run)()) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments[0] == "brief") {
    brief = true;
    arguments.erase(arguments.begin());
  }
  if (arguments.empty()) arguments.push_back("0");
  for (const std::string& seed : arguments) {
    simt::seed(unsigned(std::stoi(seed)));
    run();
  }
  printf("%d numbers checked\n", checks);
  return 0;
}

}  // namespace sparseprune::cuda
