# What GET /health/<rule> asks.
package system.health

default live := false

live if input.plugins_ready in {true, false}

ready := false

odd := "not a boolean"

empty if input.nothing

plugins := count(input.plugin_state) == 0
