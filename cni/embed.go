package cni

import (
	"embed"
	"fmt"
	"io"
	"os"
)

// bin holds the plugin program when make has built it, and a README always.
//
//go:embed bin
var bin embed.FS

// PluginBinary opens the plugin program that Install writes: the small one
// when it is embedded, else the running executable itself, which acts as the
// plugin when it is executed as one (shim.Invoked). The caller closes it.
func PluginBinary() (io.ReadCloser, error) {
	if f, err := bin.Open("bin/netctl-cni"); err == nil {
		return f, nil
	}
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open own executable as the plugin: %w", err)
	}
	return f, nil
}
