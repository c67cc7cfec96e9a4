"""How functions are compiled: a `kernel` is called by Python, a `sleeping_kernel` too; `inlined` and `called` ones are
parts of kernels.

None counts references. A part is not compiled by itself: it is kept as LLVM's unoptimized code and linked into each
kernel that it belongs to, which is then optimized whole, once, and cached on disk. Compiling each part as numba does,
with everything that it calls, took two thirds of all compile time. A part has no entry for Python, so Python must not
call one: the process would end by SIGSEGV (test_tidy.py looks for it).
"""
from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _Part(JITCodeLibrary):
    """The code of one part; what it calls is named in it, and linked by the kernel."""

    def add_linking_library(self, library):
        self._linking_libraries.append(library)

    def add_llvm_module(self, ll_module):
        super().add_llvm_module(ll_module)
        for function in _defined(self._final_module):
            function.linkage = "weak_odr"  # a kernel may meet it by several ways

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()  # numba makes one for each function that is named
        for function in _defined(ll_module):
            passes.run(function, builder)

    def finalize(self):
        self._finalized = True

    def _get_module_for_linking(self):
        """For a function that was compiled as numba does, as tests have them: with all that this part calls."""
        module = self._final_module.clone()
        _link(module, self._linking_libraries)
        for function in _defined(module):
            function.linkage = "linkonce_odr"
        return module

    def get_pointer_to_function(self, name):
        return 0

    @property
    def codegen(self):
        return self            # numba asks for it to call `set_env`

    def set_env(self, name, environment):
        """There is no machine code that could look into its environment."""


class _Kernel(JITCodeLibrary):
    """A kernel with all its parts."""

    add_linking_library = _Part.add_linking_library
    _optimize_functions = _Part._optimize_functions

    def finalize(self):
        own = {function.name for function in _defined(self._final_module)}
        _link(self._final_module, self._linking_libraries)
        for function in _defined(self._final_module):
            if function.name not in own:
                # internal, so that one which is inlined everywhere is dropped; and under another name, as the linker of
                # this process takes any function of a name for a weak one of it, also one with other registers
                function.linkage = "internal"
                function.name = f"{self.name}.{function.name}"
        self._linking_libraries = []
        super().finalize()


def _link(module, libraries):
    """Add the code of `libraries` to the module, and that of all parts that they call."""
    waiting, linked = list(libraries), set()
    while waiting:
        library = waiting.pop()
        if library not in linked:
            linked.add(library)
            if isinstance(library, _Part):
                waiting += library._linking_libraries
                module.link_in(library._final_module, preserve=True)
            else:
                module.link_in(library._get_module_for_linking(), preserve=True)


def _defined(module):
    return [function for function in module.functions if not function.is_declaration]


def _compiler(library):
    class LibraryCompiler(Compiler):
        def define_pipelines(self):
            state = self.state
            state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.library.enable_object_caching()
            return super().define_pipelines()
    return LibraryCompiler


_KERNEL, _PART = _compiler(_Kernel), _compiler(_Part)


def kernel(function):
    """Python calls it, and kernels may. Each is listed in its room's kernels.py."""
    return njit(cache=True, _nrt=False, no_cfunc_wrapper=True, pipeline_class=_KERNEL)(function)


def sleeping_kernel(function):
    """A kernel that may sleep: other threads of Python run until it returns."""
    return njit(cache=True, _nrt=False, no_cfunc_wrapper=True, nogil=True, pipeline_class=_KERNEL)(function)


def inlined(function):
    """Only kernels call it, and it becomes a part of each."""
    return njit(_nrt=False, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True,
                pipeline_class=_PART)(function)


def called(function):
    """Only kernels call it, and not often: inlining it would make them larger, not faster."""
    return njit(_nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PART)(function)
