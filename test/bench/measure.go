package main

import (
	"context"
	"strings"
	"time"

	"github.com/netctl/netctl/test/bench/ends"
)

// lengths of one run.
const (
	bulkFor  = time.Second
	shortFor = 500 * time.Millisecond
)

// costed sends over a way and measures the processor time that it takes: of the
// processes that carry the traffic, and of all that have to do with it.
func (w *way) costed(ctx context.Context, r ends.Request) (res ends.Result, carriers, all float64, err error) {
	before, err := w.all.Read()
	if err != nil {
		return res, 0, 0, err
	}
	beforeCarriers, err := w.carriers.Read()
	if err != nil {
		return res, 0, 0, err
	}
	sunk, err := w.to.Send(ctx, ends.Request{Kind: ends.Count})
	if err != nil {
		return res, 0, 0, err
	}
	if res, err = w.from.Send(ctx, r); err != nil {
		return res, 0, 0, err
	}
	if r.Kind == ends.Stream {
		now, err := w.to.Send(ctx, ends.Request{Kind: ends.Count})
		if err != nil {
			return res, 0, 0, err
		}
		res.Bytes = now.Bytes - sunk.Bytes
	}
	after, err := w.all.Read()
	if err != nil {
		return res, 0, 0, err
	}
	afterCarriers, err := w.carriers.Read()
	return res, afterCarriers.Since(beforeCarriers), after.Since(before), err
}

// stream measures so many TCP streams.
func stream(number int) measure {
	return func(ctx context.Context, w *way) ([]value, error) {
		res, carriers, all, err := w.costed(ctx, ends.Request{Kind: ends.Stream, To: w.at(ends.SinkPort), Number: number, For: bulkFor})
		if err != nil {
			return nil, err
		}
		out := []value{
			{"", "Gbit/s", res.Bytes * 8 / 1e9 / res.Took.Seconds()},
			{"-cpu", "s/GiB", all / (res.Bytes / (1 << 30))},
		}
		if len(w.carriers) > 0 {
			out = append(out, value{"-carriers", "ns/byte", carriers * 1e9 / res.Bytes})
		}
		return out, nil
	}
}

// flood measures datagrams of a size.
func flood(size int) measure {
	return func(ctx context.Context, w *way) ([]value, error) {
		res, carriers, all, err := w.costed(ctx, ends.Request{Kind: ends.Flood, To: w.at(ends.SinkPort), Size: size, Flows: w.flows, For: shortFor})
		if err != nil {
			return nil, err
		}
		out := []value{
			{"", "kpps", res.Packets / 1e3 / res.Took.Seconds()},
			{"-cpu", "us/packet", all * 1e6 / res.Packets},
		}
		if len(w.carriers) > 0 {
			out = append(out,
				value{"-carriers", "us/packet", carriers * 1e6 / res.Packets},
				value{"-per-core", "Mpps", res.Packets / 1e6 / carriers})
		}
		return out, nil
	}
}

// ask measures one request after the other.
func ask(ctx context.Context, w *way) ([]value, error) {
	res, carriers, all, err := w.costed(ctx, ends.Request{Kind: ends.Ask, To: w.at(ends.EchoPort), For: shortFor})
	if err != nil {
		return nil, err
	}
	out := []value{
		{"-p50", "us", float64(res.P50) / 1e3},
		{"-p99", "us", float64(res.P99) / 1e3},
		{"-cpu", "us/request", all * 1e6 / res.Count},
	}
	if len(w.carriers) > 0 {
		out = append(out, value{"-carriers", "us/request", carriers * 1e6 / res.Count})
	}
	return out, nil
}

// connect measures new connections, four at a time.
func connect(ctx context.Context, w *way) ([]value, error) {
	res, _, all, err := w.costed(ctx, ends.Request{Kind: ends.Connect, To: w.at(ends.GreetPort), Number: 4, For: shortFor})
	if err != nil {
		return nil, err
	}
	return []value{
		{"", "connections/s", res.Count / res.Took.Seconds()},
		{"-p99", "us", float64(res.P99) / 1e3},
		{"-failed", "connections", res.Failed},
		{"-cpu", "us/connection", all * 1e6 / res.Count},
	}, nil
}

// measureOf finds a measure by the end of a contest's name.
func measureOf(name string) measure {
	for _, m := range []struct {
		end string
		measure
	}{
		{"-tcp-8", stream(8)},
		{"-udp-64", flood(64)},
		{"-udp-512", flood(512)},
		{"-udp-1200", flood(1200)},
		{"-udp-1380", flood(1380)},
		{"-ask", ask},
		{"-connect", connect},
		{"-under-load", underLoad},
	} {
		if strings.HasSuffix(name, m.end) {
			return m.measure
		}
	}
	return stream(1)
}
