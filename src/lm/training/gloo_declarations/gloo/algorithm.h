// Stands in for Gloo's header, which ProcessGroupGloo.hpp includes and of which it uses nothing. See ../README.md.
#pragma once
