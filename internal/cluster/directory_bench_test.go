package cluster_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// BenchmarkDirectoryChange measures from the write of one pod's file to the
// State that has it, among as many pods as a large cluster's node group has.
func BenchmarkDirectoryChange(b *testing.B) {
	const pods = 5000
	dir := b.TempDir()
	object := func(i, version int) cluster.Object {
		o, err := cluster.PodObject(&cluster.Pod{Pod: model.Pod{
			Name: model.Name{Namespace: "default", Name: fmt.Sprintf("p%d", i)}, Hostname: fmt.Sprintf("v%d", version),
		}})
		if err != nil {
			b.Fatal(err)
		}
		return o
	}
	for i := range pods {
		if err := cluster.WriteObject(dir, object(i, 0)); err != nil {
			b.Fatal(err)
		}
	}
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: filepath.Clean(dir), Rescan: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	states := make(chan *model.State, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- d.Run(ctx, func(s *model.State) { states <- s }) }()
	<-states
	fmt.Printf("figure cluster_directory_first_state_5000 %d ms\n", time.Since(start).Milliseconds())
	version, total := 0, time.Duration(0)
	for b.Loop() {
		version++
		o := object(version%pods, version)
		start := time.Now()
		if err := cluster.WriteObject(dir, o); err != nil {
			b.Fatal(err)
		}
		<-states
		total += time.Since(start)
	}
	fmt.Printf("figure cluster_directory_change_5000 %.1f ms\n", float64(total.Microseconds())/1000/float64(version))
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
