#include <exception>
#include <string>
#include <vector>

#include "adapters/python/src/bindings.hpp"
#include "engines/engines.hpp"
#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant::python {

namespace {

/// `kvquant.Error` with the library's text and its code's name.
void raise(error const& failure) {
  try {
    nb::object const made = nb::module_::import_("kvquant._errors").attr("Error")(failure.what());
    made.attr("code") = nb::cast(to_string(failure.code));
    PyErr_SetObject(made.type().ptr(), made.ptr());
  } catch (nb::python_error& other) {
    other.restore();
  }
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for_each_type(specs{}, [&]<class S>(std::type_identity<S>) { names.push_back(S::name()); });
  return names;
}

std::vector<std::string> names_of_backends() { return {backend_names().begin(), backend_names().end()}; }

}  // namespace

std::pair<double, double> fractions_from(nb::handle given, char const* name) {
  if (double both = 0; nb::try_cast(given, both)) return {both, both};
  if (std::pair<double, double> each; nb::try_cast(given, each)) return each;
  throw nb::type_error(
      text(name, ": a ", nb::type_name(given.type()).c_str(), ", expected a number, or one of keys and one of values")
          .c_str());
}

}  // namespace kvquant::python

NB_MODULE(_core, module) {
  namespace py = kvquant::python;
  module.doc() = "The compiled part of kvquant.";
  // Registries of other packages (attention functions of transformers) keep objects of ours to the interpreter's end.
  nanobind::set_leak_warnings(false);
  module.attr("__version__") = KVQUANT_VERSION;
  nanobind::register_exception_translator([](std::exception_ptr const& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (kvquant::error const& failure) {
      py::raise(failure);
    }
  });
  module.def("backends", &py::names_of_backends, "Names of the backends that this build has.");
  module.def(
      "default_backend", [] { return std::string(kvquant::default_backend()); },
      "The fastest backend that this machine can run.");
  module.def("formats", &py::format_names, "Names of the formats that artifacts can have, without their outliers.");
  py::bind_shape(module);
  py::bind_artifact(module);
  py::bind_calibrator(module);
  py::bind_cache(module);
}
