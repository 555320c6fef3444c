#pragma once
#include "../conv_geometry.h"
