package e2e_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/e2e/internal/browser"
)

// screenshotEnv names a file for a picture of the page, for a person to look at.
const screenshotEnv = "KUBE_REGO_SCREENSHOT"

// openBrowser opens a page until the test ends.
func openBrowser(t *testing.T) *browser.Page {
	t.Helper()
	path, err := browser.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, closed, err := browser.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closed)
	return page
}

// as is a client that somebody else uses, who may do anything.
func as(t *testing.T, user string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// The page is looked at with a real browser, over texts that would be markup if they were let.
func TestTheStatusPageInABrowser(t *testing.T) {
	page := openBrowser(t)
	_, instance := install(t)
	const (
		user   = `<img src=x onerror="document.title='taken'">`
		secret = "hunter2"
		broken = "package kubernetes.admission\n\n\tdeny contains \"</pre><b>bold</b><script>document.title='taken'</script>\" ! x\n"
		line   = `deny contains "</pre><b>bold</b><script>document.title='taken'</script>" ! x`
	)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "labels", "main", denyLabel("refused")))
	create(t, policy(opa, "broken", "main", broken))
	refuses(t, "refused")
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/labels/main": "current", "opa/broken/main": "none"})
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "of-eve", Labels: map[string]string{"deny": "refused"}},
		Data:       map[string]string{"password": secret},
	}
	_, err := as(t, user).CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(t.Context(), cm, metav1.CreateOptions{})
	if err == nil || err.Error() != refusal("refused") {
		t.Fatalf("the answer is %v", err)
	}

	url := instance.DiagnosticURL() + "/status"
	if err := page.Do(chromedp.Navigate(url)); err != nil {
		t.Fatal(err)
	}
	if file := os.Getenv(screenshotEnv); file != "" {
		picture, err := page.Screenshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("it shows what is held and where, what is in force, and who was refused", func(t *testing.T) {
		text := evaluate[string](t, page, `document.body.innerText`)
		for _, want := range []string{
			"ready", "1 held", "opa/broken/main", "nothing of it is in force", "rego_parse_error at row 3, column ", line,
			"opa/labels/main", "in force", "of-eve", user, "CREATE", "ConfigMap", "denied",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("it does not show %s", want)
			}
		}
		if strings.Contains(text, secret) {
			t.Error("it shows the object")
		}
		if t.Failed() {
			t.Log(text)
		}
	})
	t.Run("what is held comes first", func(t *testing.T) {
		rows := evaluate[[]string](t, page, `Array.from(document.querySelectorAll('#modules + div tbody tr')).map(row => row.cells[0].innerText + ' ' + row.cells[1].innerText)`)
		if want := []string{"opa/broken/main held", "opa/labels/main in force", "opa/main/main in force"}; !slices.Equal(rows, want) {
			t.Errorf("the modules are %q, want %q", rows, want)
		}
	})
	t.Run("no text of others is markup", func(t *testing.T) {
		title := evaluate[string](t, page, `document.title`)
		elements := evaluate[int](t, page, `document.querySelectorAll('script, b, img, body style, iframe').length`)
		if elements != 0 || title != "1 held · kube-rego" {
			t.Errorf("%d elements are of others, and the title is %s", elements, title)
		}
	})
	t.Run("the caret stands below its column", func(t *testing.T) {
		places := evaluate[[]float64](t, page, `(() => {
			const text = document.querySelector('.held pre').firstChild, lines = text.data.split('\n');
			const left = at => { const r = document.createRange(); r.setStart(text, at); r.setEnd(text, at + 1); return r.getBoundingClientRect().left; };
			return [left(lines[1].length - 1), left(lines[0].length + lines[1].length)];
		})()`)
		if len(places) != 2 || places[0] != places[1] || places[0] == 0 {
			t.Errorf("the column and the caret are at %v", places)
		}
	})
	t.Run("it is light or dark, as its reader likes it", func(t *testing.T) {
		colors := make(map[string]string)
		for _, scheme := range []string{"light", "dark"} {
			if err := page.Prefers(scheme); err != nil {
				t.Fatal(err)
			}
			colors[scheme] = evaluate[string](t, page, `getComputedStyle(document.body).backgroundColor`)
		}
		if colors["light"] != "rgb(246, 247, 249)" || colors["dark"] != "rgb(15, 19, 23)" {
			t.Errorf("the background is %v", colors)
		}
	})
	t.Run("it fits on a small screen", func(t *testing.T) {
		if err := page.Do(chromedp.EmulateViewport(400, 800)); err != nil {
			t.Fatal(err)
		}
		wide := evaluate[bool](t, page, `document.documentElement.scrollWidth > innerWidth`)
		if err := page.Do(chromedp.EmulateViewport(1280, 1000)); err != nil {
			t.Fatal(err)
		}
		if wide {
			t.Error("it must be scrolled to the side")
		}
	})
	t.Run("a keyboard reaches every link and what can be scrolled", func(t *testing.T) {
		want := evaluate[int](t, page, `document.querySelectorAll('a, pre, [role=region]').length`)
		var reached []string
		for range want {
			if err := page.Do(chromedp.KeyEvent(kb.Tab)); err != nil {
				t.Fatal(err)
			}
			name := evaluate[string](t, page, `document.activeElement.tagName + ' ' + document.activeElement.textContent.slice(0, 20).trim()`)
			if !slices.Contains(reached, name) && !strings.HasPrefix(name, "BODY") {
				reached = append(reached, name)
			}
		}
		if len(reached) != want || want < 6 {
			t.Errorf("%d of %d are reached: %q", len(reached), want, reached)
		}
	})
	t.Run("it asks for nothing but itself, and the browser has nothing to complain about", func(t *testing.T) {
		if got, want := page.Requests(), []string{"GET " + url}; !slices.Equal(got, want) {
			t.Errorf("it asks for %q, want %q", got, want)
		}
		if got := page.Complaints(); len(got) > 0 {
			t.Errorf("the browser says %q", got)
		}
	})
	t.Run("a script that got in would not run", func(t *testing.T) {
		// Tried for good, so that the complaints above are known to be heard.
		title := evaluate[string](t, page, `document.body.appendChild(Object.assign(document.createElement('script'), {textContent: "document.title = 'taken'"})), document.title`)
		if title == "taken" {
			t.Error("it ran")
		}
		eventually(t, "the browser says so", func(context.Context) error {
			if got := page.Complaints(); !strings.Contains(strings.Join(got, "\n"), "Content Security Policy") {
				return fmt.Errorf("it says %q", got)
			}
			return nil
		})
	})
}

// evaluate is the value of an expression on the page.
func evaluate[T any](t *testing.T, page *browser.Page, expression string) T {
	t.Helper()
	value, err := browser.Evaluate[T](page, expression)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
