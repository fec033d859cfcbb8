// Command image makes netctl's container image, for amd64 and arm64, as one OCI
// archive that `ctr images import` takes. `make image` runs it.
//
// An OCI image is a handful of JSON files and tar files named by their digests;
// for one static binary per architecture, writing them takes less code than
// configuring a builder, and needs neither an engine nor a registry nor a
// dependency. build.go compiles, archive.go packs.
//
// The archive is reproducible: from the same commit with the same Go it is the
// same bytes, whoever builds it wherever. Every time in it is that of
// SOURCE_DATE_EPOCH, or zero.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/netctl/netctl/deploy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	output := flags.String("o", "dist/netctl-image.tar", "the archive to write")
	arches := flags.String("arch", "amd64,arm64", "architectures, with commas")
	version := flags.String("version", "dev", "what `netctl --version` says")
	reference := flags.String("reference", "", "the image's name (default what the chart names)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *reference == "" {
		var err error
		if *reference, err = deploy.Image(deploy.Options{}); err != nil {
			return err
		}
	}
	created, err := epoch(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "netctl-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image := Image{Reference: *reference, Version: *version, Created: created}
	for arch := range strings.SplitSeq(*arches, ",") {
		binary, err := build(ctx, dir, arch, *version)
		if err != nil {
			return err
		}
		image.Platforms = append(image.Platforms, Platform{Arch: arch, Binary: binary})
	}
	if err := os.MkdirAll(filepath.Dir(*output), 0o755); err != nil {
		return err
	}
	if err := image.WriteFile(*output); err != nil {
		return err
	}
	info, err := os.Stat(*output)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %s for %s, %.1f MB\n", *output, *reference, *arches, float64(info.Size())/1e6)
	return nil
}

// epoch reads SOURCE_DATE_EPOCH, the time that reproducible builds take for now.
func epoch(text string) (time.Time, error) {
	if text == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q is not a number of seconds", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
