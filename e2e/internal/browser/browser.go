// Package browser drives a real Chromium without a screen, and keeps account of what a page does.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// ErrNone says that there is no browser, and that we may not install one.
var ErrNone = errors.New("there is no Chromium: install the package chromium, or name a program with " + Env)

// Env is the environment variable that names another program.
const Env = "KUBE_REGO_BROWSER"

// installLimit bounds the installation, which takes about a minute.
const installLimit = 10 * time.Minute

// Find is the path of a Chromium. On Debian root has it installed where it is missing.
func Find(ctx context.Context) (string, error) {
	if path := os.Getenv(Env); path != "" {
		return path, nil
	}
	if path := installed(); path != "" {
		return path, nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return "", ErrNone
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	for _, args := range [][]string{{"update"}, {"install", "--yes", "--no-install-recommends", "chromium"}} {
		cmd := exec.CommandContext(ctx, apt, append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
		}
	}
	if path := installed(); path != "" {
		return path, nil
	}
	return "", ErrNone
}

func installed() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// Page is one tab of a browser of its own.
type Page struct {
	ctx context.Context

	mu         sync.Mutex
	requests   []string
	complaints []string
}

// Open starts a browser until ctx ends or close is called.
func Open(ctx context.Context, path string) (page *Page, closed func(), err error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.WindowSize(1280, 1000),
		// Its own traffic would be taken for the page's; root, as tests in containers are, has no sandbox.
		chromedp.Flag("disable-component-update", true),
		chromedp.NoSandbox,
	)
	ctx, end := chromedp.NewExecAllocator(ctx, options...)
	ctx, endTab := chromedp.NewContext(ctx)
	closed = func() {
		endTab()
		end()
	}
	page = &Page{ctx: ctx}
	if err := chromedp.Listen(ctx, page.note); err != nil {
		closed()
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return page, closed, nil
}

// note takes down what the page asks for and what goes wrong.
func (p *Page) note(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, e.Request.Method+" "+e.Request.URL)
	case *network.EventLoadingFailed:
		p.complaints = append(p.complaints, fmt.Sprintf("loading failed: %s %s", e.ErrorText, e.BlockedReason))
	case *network.EventResponseReceived:
		if e.Response.Status >= 400 {
			p.complaints = append(p.complaints, fmt.Sprintf("%s is %d", e.Response.URL, e.Response.Status))
		}
	case *log.EventEntryAdded: // what the browser says: a content security policy that was violated, for one
		p.complaints = append(p.complaints, fmt.Sprintf("%s %s: %s", e.Entry.Source, e.Entry.Level, e.Entry.Text))
	case *runtime.EventConsoleAPICalled:
		p.complaints = append(p.complaints, "the console was written to")
	case *runtime.EventExceptionThrown:
		p.complaints = append(p.complaints, "an exception: "+e.ExceptionDetails.Text)
	}
}

// Do does something with the page.
func (p *Page) Do(steps ...chromedp.Action[chromedp.Void]) error { return chromedp.Do(p.ctx, steps...) }

// Screenshot is a picture of the whole page.
func (p *Page) Screenshot() ([]byte, error) { return chromedp.Run(p.ctx, chromedp.FullScreenshot(100)) }

// Prefers has the page believe that its reader likes a color scheme, light or dark.
func (p *Page) Prefers(scheme string) error {
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	return err
}

// Evaluate is the value of an expression on the page; a content security policy does not stop it.
func Evaluate[T any](p *Page, expression string) (T, error) {
	return chromedp.Run(p.ctx, chromedp.Evaluate[T](expression))
}

// Requests are those of the page, without what it brought along itself.
func (p *Page) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sent []string
	for _, request := range p.requests {
		if !strings.HasPrefix(request, "GET data:") {
			sent = append(sent, request)
		}
	}
	return sent
}

// Complaints are what went wrong: requests that failed, scripts, and what the browser warns of.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.complaints...)
}
