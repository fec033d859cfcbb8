package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// build compiles netctl for an architecture into dir, with the small CNI plugin
// of the same architecture embedded, and returns the binary's path. The plugin
// is laid over the tree with -overlay, so that what a build for this machine has
// put there is neither used nor disturbed.
func build(ctx context.Context, dir, arch, version string) (string, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return "", err
	}
	plugin, binary := filepath.Join(dir, "netctl-cni-"+arch), filepath.Join(dir, "netctl-"+arch)
	if err := compile(ctx, arch, "-ldflags=-s -w", "-o", plugin, "./cni/plugin"); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(root, "cni", "bin", "netctl-cni"): plugin,
	}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay-"+arch+".json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return "", err
	}
	return binary, compile(ctx, arch, "-overlay="+file, "-ldflags=-s -w -X main.version="+version, "-o", binary, "./cmd/netctl")
}

func compile(ctx context.Context, arch string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-buildvcs=false"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build for linux/%s: %w", arch, err)
	}
	return nil
}
