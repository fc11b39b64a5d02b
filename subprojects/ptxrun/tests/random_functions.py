#!/usr/bin/env python3
"""Writes a CUDA program of random functions that run on host and device; it counts different results.

Usage: random_functions.py SEED [FUNCTIONS]; compile with -fmad=false -Xcompiler -ffp-contract=off
"""
import random
import sys

HEADER = '''#include "check.hpp"
#include <cstring>
#define HD __host__ __device__ inline
HD unsigned mn(unsigned a, unsigned b) { return a < b ? a : b; }
HD unsigned mxs(unsigned a, unsigned b) { return (int)a > (int)b ? a : b; }
HD unsigned mulh(unsigned a, unsigned b) { return (unsigned)(((long long)(int)a * (int)b) >> 32); }
HD unsigned rot(unsigned a, unsigned b) { return a << (b & 31) | a >> ((32 - (b & 31)) & 31); }
HD unsigned sar(unsigned a, unsigned b) { return (unsigned)((int)a >> (b & 31)); }
HD unsigned pc(unsigned a) { unsigned c = 0; while (a) { a &= a - 1; ++c; } return c; }
HD float dv(float a, float b) { return b == 0 ? a : a / b; }
HD float cl(float a) { return !(a == a) ? 0.5f : a > 1e6f ? 1e6f : a < -1e6f ? -1e6f : a; }
HD double cld(double a) { return !(a == a) ? 0.5 : a > 1e9 ? 1e9 : a < -1e9 ? -1e9 : a; }
HD unsigned fb(float f) { unsigned u; memcpy(&u, &f, 4); return f == 0 ? 0 : u; }
HD unsigned long long db(double f) { unsigned long long u; memcpy(&u, &f, 8); return f == 0 ? 0 : u; }
'''

VARS = ([('unsigned', f'u{i}') for i in range(4)] + [('unsigned long long', f'w{i}') for i in range(2)] +
        [('unsigned short', f'h{i}') for i in range(2)] + [('int', f's{i}') for i in range(3)] +
        [('float', f'f{i}') for i in range(3)] + [('double', 'd0'), ('signed char', 'c0')])
INT_LEAVES = ['u0', 'u1', 'u2', 'u3', '(unsigned)w0', '(unsigned)h0', '(unsigned)s0', '(unsigned)s1', '(unsigned)c0',
              '(unsigned)(w1 >> 17)']
INT_OPS = ['(%s + %s)', '(%s - %s)', '(%s * %s)', '(%s & %s)', '(%s | %s)', '(%s ^ %s)', '(%s >> (%s & 31))',
           '(%s << (%s & 31))', '(%s / (%s | 1u))', '(%s %% (%s | 1u))', '(%s < %s ? 3u : u1)',
           'mn(%s, %s)', 'mxs(%s, %s)', 'mulh(%s, %s)', 'rot(%s, %s)', 'pc(%s ^ %s)', 'sar(%s, %s)']
FLOAT_LEAVES = ['f0', 'f1', 'f2', '(float)s0', '(float)u1', '(float)h1', '(float)c0', '(float)d0']
FLOAT_OPS = ['(%s + %s)', '(%s - %s)', '(%s * %s)', 'dv(%s, %s)', 'fminf(%s, %s)', 'fmaxf(%s, %s)', 'fmaf(%s, %s, f0)',
             '(%s < %s ? f1 : 2.5f)', 'floorf(%s * 0.37f + %s)', 'sqrtf(fabsf(%s + %s))']
RESULT = ('u0 ^ ((unsigned long long)u1 << 32) ^ ((unsigned long long)u2 << 13) ^ u3 ^ w0 * 3 ^ w1 ^ h0 ^ '
          '((unsigned long long)h1 << 40) ^ (unsigned)s0 ^ (unsigned long long)(long long)s1 * 5 ^ (unsigned)s2 ^ '
          '(unsigned)c0 ^ fb(f0) ^ ((unsigned long long)fb(f1) << 8) ^ fb(f2) * 7ull ^ db(d0)')


class Generator:
    def __init__(self, rng):
        self.rng, self.lines = rng, []

    def expr(self, leaves, ops, depth=0):
        if depth > 2 or self.rng.random() < 0.25:
            return self.rng.choice(leaves)
        return self.rng.choice(ops) % (self.expr(leaves, ops, depth + 1), self.expr(leaves, ops, depth + 1))

    def int_(self, depth=0):
        return self.expr(INT_LEAVES, INT_OPS, depth)

    def float_(self):
        return self.expr(FLOAT_LEAVES, FLOAT_OPS)

    def body(self, depth, indent):
        for _ in range(self.rng.randrange(1, 4)):
            self.statement(depth, indent)

    def statement(self, depth, indent):
        rng, pad = self.rng, '  ' * indent
        add = lambda s: self.lines.append(pad + s)
        r = rng.random()
        if r < 0.35:
            add(f'u{rng.randrange(4)} = {self.int_()};')
        elif r < 0.45:
            add(f'w{rng.randrange(2)} = (unsigned long long){self.int_(1)} * {self.int_(1)} + '
                f'(w0 >> ({self.int_(3)} & 63));')
        elif r < 0.52:
            add(f'h{rng.randrange(2)} = (unsigned short){self.int_(1)};')
        elif r < 0.60:
            add(f's{rng.randrange(3)} = (int){self.int_(1)};')
        elif r < 0.64:
            add(f'c0 = (signed char){self.int_(1)};')
        elif r < 0.76:
            add(f'f{rng.randrange(3)} = cl({self.float_()});')
        elif r < 0.80:
            add(f'd0 = cld((double){rng.choice(FLOAT_LEAVES)} * 1.25 + d0 / 3.0);')
        elif r < 0.84:
            add(f's1 = (int)cl({rng.choice(FLOAT_LEAVES)});')
        elif depth < 2 and r < 0.92:
            add(f'if ({self.int_(2)} {rng.choice(["<", ">", "==", "!=", "<="])} {self.int_(2)}) {{')
            self.body(depth + 1, indent + 1)
            if rng.random() < 0.6:
                add('} else {')
                self.body(depth + 1, indent + 1)
            add('}')
        elif depth < 2:
            v = f'i{len(self.lines)}_{depth}'
            add(f'for (unsigned {v} = 0; {v} < ({self.int_(3)} & 15); ++{v}) {{')
            self.body(depth + 1, indent + 1)
            if rng.random() < 0.5:
                add(f'  if ({self.int_(3)} % 7 == 3) break;')
            if rng.random() < 0.3:
                add(f'  if ({self.int_(3)} % 5 == 1) continue;')
            add('}')
        else:
            add(f'u3 ^= {self.int_(3)};')

    def function(self, name):
        self.lines.append(f'__host__ __device__ unsigned long long {name}(unsigned x, unsigned y) {{')
        for type_, var in VARS:
            start = '(x & 1023)' if type_ in ('float', 'double') else self.rng.choice('xy')
            self.lines.append(f'  {type_} {var} = ({type_})({start} * {self.rng.randrange(1, 1 << 16)}u + '
                              f'{self.rng.randrange(1 << 12)});')
        for _ in range(14):
            self.statement(0, 1)
        self.lines.append(f'  return {RESULT};\n}}')


def main():
    seed = int(sys.argv[1])
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 80
    g = Generator(random.Random(seed))
    for i in range(n):
        g.function(f'fz{i}')
    cases = ''.join(f'    case {i}: r = fz{i}(x, y); break;\n' for i in range(n))
    names = ', '.join(f'fz{i}' for i in range(n))
    print(HEADER + '\n'.join(g.lines) + f'''
__global__ void all_kernel(unsigned long long* o) {{
  unsigned x = (blockIdx.x * 64 + threadIdx.x) * 2654435761u, y = x ^ 0x9e3779b9u;
  unsigned long long r = 0;
  switch (blockIdx.y) {{
{cases}  }}
  o[(blockIdx.y * gridDim.x + blockIdx.x) * 64 + threadIdx.x] = r;
}}
int main() {{
  unsigned long long (*host[])(unsigned, unsigned) = {{{names}}};
  DeviceBuffer<unsigned long long> o({n} * 512);
  all_kernel<<<dim3(8, {n}), 64>>>(o.ptr);
  auto got = o.host();
  for (int f = 0; f < {n}; ++f) {{
    int bad = 0;
    for (unsigned i = 0; i < 512; ++i) {{
      unsigned x = i * 2654435761u;
      bad += got[f * 512 + i] != host[f](x, x ^ 0x9e3779b9u);
    }}
    if (bad) std::printf("fz%d: %d of 512 results differ\\n", f, bad), ++g_failed;
  }}
  return finish("random {seed}");
}}''')


if __name__ == '__main__':
    main()
