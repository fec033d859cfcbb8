package hold

import (
	"context"
	"errors"
	"testing"

	"github.com/netctl/netctl/cni"
)

func TestHolds(t *testing.T) {
	t.Parallel()
	var h Holds
	id := cni.ID{ContainerID: "c", IfName: "eth0"}
	release, err := h.Take(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := h.Try(id); again != nil {
		t.Fatal("held twice")
	}
	if other, _ := h.Try(cni.ID{ContainerID: "d", IfName: "eth0"}); other == nil {
		t.Fatal("another attachment is held, too")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Take(ctx, id); !errors.Is(err, context.Canceled) {
		t.Fatalf("waiting with an ended context: %v", err)
	}
	waited := make(chan error)
	go func() {
		release, err := h.Take(context.Background(), id)
		if err == nil {
			release()
		}
		waited <- err
	}()
	release()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
}
