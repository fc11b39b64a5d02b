# Headers alone, of the tree that this port lies in: vcpkg install kvquant --overlay-ports=packaging/vcpkg
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(VCPKG_BUILD_TYPE release)  # one package for both, and no binaries in it
set(VCPKG_FIXUP_ELF_RPATH OFF)

file(INSTALL "${SOURCE_PATH}/include/kvquant" DESTINATION "${CURRENT_PACKAGES_DIR}/include")
file(INSTALL "${SOURCE_PATH}/backends/cpu" DESTINATION "${CURRENT_PACKAGES_DIR}/include/kvquant-backends/backends"
  PATTERN "compiled" EXCLUDE)

# As Meson configures them, but for the folder that vcpkg keeps packages' files in.
set(TO_PREFIX "../..")
set(INCLUDEDIR "include")
foreach(file IN ITEMS kvquantConfig.cmake kvquantConfigVersion.cmake)
  configure_file("${SOURCE_PATH}/cmake/${file}.in" "${CURRENT_PACKAGES_DIR}/share/${PORT}/${file}" @ONLY)
endforeach()

file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
