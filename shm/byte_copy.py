"""Copying bytes between arrays in compiled code: one memcpy, where a loop would become pages of vector code."""
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _is_row(array):
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"


def _is_bytes(array):
    return _is_row(array) and array.dtype == types.uint8


def _copying(function_name):
    def codegen(context, builder, signature, args):
        pointers = []
        for place in (0, 2):
            array_type = signature.args[place]
            array = context.make_array(array_type)(context, builder, args[place])
            index = context.cast(builder, args[place + 1], signature.args[place + 1], types.intp)
            pointer = cgutils.get_item_pointer(context, builder, array_type, array, [index], wraparound=False)
            pointers.append(builder.bitcast(pointer, cgutils.voidptr_t))
        size = context.cast(builder, args[4], signature.args[4], types.intp)
        function = builder.module.declare_intrinsic(function_name, [cgutils.voidptr_t, cgutils.voidptr_t, size.type])
        builder.call(function, [*pointers, size, cgutils.false_bit])
        return context.get_dummy_value()
    return codegen


@intrinsic
def copy_bytes(typingctx, target, target_at, source, source_at, count):
    """Copy `count` bytes of the array `source` from its item `source_at` on to `target`, another one, at its item
    `target_at`.

    Nothing is checked: who calls it has seen to the room.
    """
    if not _is_row(target) or not _is_row(source) or not target.mutable:
        return None
    return types.none(target, target_at, source, source_at, count), _copying("llvm.memcpy")


@intrinsic
def move_bytes(typingctx, array, target_at, source_at, count):
    """Move `count` bytes within a uint8 array; the places may overlap. Nothing is checked."""
    if not _is_bytes(array) or not array.mutable:
        return None
    copy = _copying("llvm.memmove")

    def codegen(context, builder, signature, args):
        twice = (args[0], args[1], args[0], args[2], args[3])
        types_twice = signature.replace(args=(*signature.args[:2], signature.args[0], *signature.args[2:]))
        return copy(context, builder, types_twice, twice)
    return types.none(array, target_at, source_at, count), codegen
