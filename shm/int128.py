"""Exact 128-bit integers in compiled code, for money. In records: two halves, `low` unsigned and `high` signed.

`+ - *`, comparisons and unary minus wrap silently like int64: whoever multiplies states the bound of the product, or
asks `product_overflows`. Division needs libgcc, which is loaded here, before any cached kernel that calls it.
"""
import operator

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.extending import lower_builtin, type_callable
from numba.extending import intrinsic, register_model

llvmlite.binding.load_library_permanently("libgcc_s.so.1")

INT128_MAX = 2**127 - 1
MASK64 = 2**64 - 1
_I128 = ir.IntType(128)
_I64 = ir.IntType(64)


class Int128Type(types.Type):
    def __init__(self):
        super().__init__(name="Int128")


int128 = Int128Type()


@register_model(Int128Type)
class _Int128Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _I128)


@intrinsic
def from_halves(typingctx, low, high):
    """The 128-bit integer of a record's two words."""
    def codegen(context, builder, signature, args):
        low_word = builder.zext(context.cast(builder, args[0], signature.args[0], types.uint64), _I128)
        high_word = builder.sext(context.cast(builder, args[1], signature.args[1], types.int64), _I128)
        return builder.or_(low_word, builder.shl(high_word, ir.Constant(_I128, 64)))
    return int128(low, high), codegen


@intrinsic
def from_int64(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.sext(context.cast(builder, args[0], signature.args[0], types.int64), _I128)
    return int128(value), codegen


@intrinsic
def low_half(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.trunc(args[0], _I64)
    return types.uint64(value), codegen


@intrinsic
def high_half(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.trunc(builder.ashr(args[0], ir.Constant(_I128, 64)), _I64)
    return types.int64(value), codegen


@intrinsic
def multiply_int64(typingctx, left, right):
    """The exact product of two int64: it cannot overflow."""
    def codegen(context, builder, signature, args):
        wide = [builder.sext(context.cast(builder, arg, given, types.int64), _I128)
                for arg, given in zip(args, signature.args)]
        return builder.mul(*wide)
    return int128(left, right), codegen


@intrinsic
def product_overflows(typingctx, left, right):
    """Whether left * right does not fit 128 bits. Both are 128-bit, the right one positive.

    By division, not by the overflow intrinsic: that needs a compiler library which is not everywhere."""
    def codegen(context, builder, signature, args):
        value, factor = args
        zero = ir.Constant(_I128, 0)
        negative = builder.icmp_signed("<", value, zero)
        magnitude = builder.select(negative, builder.neg(value), value)
        limit = builder.sdiv(ir.Constant(_I128, INT128_MAX), factor)
        return builder.icmp_signed(">", magnitude, limit)
    return types.boolean(left, right), codegen


@intrinsic
def divide(typingctx, dividend, divisor):
    """The quotient of non-negative 128-bit integers, rounded down."""
    def codegen(context, builder, signature, args):
        dividend_value, divisor_value = args
        small = builder.icmp_unsigned("<", builder.or_(dividend_value, divisor_value),
                                      ir.Constant(_I128, 2**64))
        with builder.if_else(small) as (in_64_bits, in_128_bits):
            with in_64_bits:
                short = builder.zext(builder.udiv(builder.trunc(dividend_value, _I64),
                                                  builder.trunc(divisor_value, _I64)), _I128)
                short_block = builder.basic_block
            with in_128_bits:
                long = builder.sdiv(dividend_value, divisor_value)
                long_block = builder.basic_block
        quotient = builder.phi(_I128)
        quotient.add_incoming(short, short_block)
        quotient.add_incoming(long, long_block)
        return quotient
    return int128(dividend, divisor), codegen


@intrinsic
def folded_product(typingctx, left, right):
    """The upper half of the product of two uint64, xor the lower one: the mixing step of checksums and hashes."""
    def codegen(context, builder, signature, args):
        wide = [builder.zext(context.cast(builder, arg, given, types.uint64), _I128)
                for arg, given in zip(args, signature.args)]
        product = builder.mul(*wide)
        upper = builder.trunc(builder.lshr(product, ir.Constant(_I128, 64)), _I64)
        return builder.xor(builder.trunc(product, _I64), upper)
    return types.uint64(left, right), codegen


def _binary(operation, build, result):
    @type_callable(operation)
    def type_operation(context):
        def typer(left, right):
            if left == int128 and right == int128:
                return result
            return None
        return typer

    @lower_builtin(operation, Int128Type, Int128Type)
    def lower_operation(context, builder, signature, args):
        return build(builder, args[0], args[1])


_binary(operator.add, lambda builder, a, b: builder.add(a, b), int128)
_binary(operator.sub, lambda builder, a, b: builder.sub(a, b), int128)
_binary(operator.mul, lambda builder, a, b: builder.mul(a, b), int128)
_binary(operator.iadd, lambda builder, a, b: builder.add(a, b), int128)
_binary(operator.isub, lambda builder, a, b: builder.sub(a, b), int128)
for _operation, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="),
                          (operator.eq, "=="), (operator.ne, "!=")):
    _binary(_operation, lambda builder, a, b, sign=_sign: builder.icmp_signed(sign, a, b), types.boolean)


@type_callable(operator.neg)
def _type_negation(context):
    def typer(value):
        return int128 if value == int128 else None
    return typer


@lower_builtin(operator.neg, Int128Type)
def _lower_negation(context, builder, signature, args):
    return builder.neg(args[0])


def halves(value):
    """(low, high) of a Python integer, for a record. The value must fit 128 bits."""
    assert -INT128_MAX - 1 <= value <= INT128_MAX, value
    return value & MASK64, value >> 64


def join(low, high):
    """The Python integer of a record's two words."""
    return (int(high) << 64) | int(low)


assert cgutils.intp_t.width == 64, "64-bit machines only"
