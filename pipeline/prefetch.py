"""Asking for a cache line before it is needed."""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def fetch(typingctx, array, index):
    """Ask for the cache line of array[index]; any index that is in bounds."""
    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        made = context.make_array(array_type)(context, builder, args[0])
        place = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer = cgutils.get_item_pointer(context, builder, array_type, made, [place], wraparound=False)
        raw = builder.bitcast(pointer, cgutils.voidptr_t)
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word]), "llvm.prefetch.p0")
        builder.call(function, [raw, word(1), word(3), word(1)])
        return context.get_dummy_value()
    return types.none(array, index), codegen
