//! Secrets in the right keys and in wrong ones: messages show nothing of them.

use super::super::schema_table::REGISTRY;
use super::*;

#[test]
fn no_piece_of_a_secret_in_the_wrong_key_is_shown() {
    // Words of three letters and fewer, one word, a base64 body, and characters that would split a URL.
    for secret in [
        "ab-cd-ef",
        "x.y.z",
        "hunter2",
        "MIIBVQIBADANBgkqhkiG9w0BAQEFAASCAT8wggE7AgEAAkEA/x",
        "qq/ww#ee@rr?tt",
        "v1.7q/Zz9",
    ] {
        let environment = |_: &str| Some(secret.to_owned());
        let pieces: Vec<&str> = secret.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let is_shown = |shown: &str| {
            let words: Vec<&str> = shown.split(|c: char| !c.is_ascii_alphanumeric()).collect();
            pieces.iter().any(|piece| words.contains(piece))
        };
        let rules = [
            "from",
            "to",
            "name",
            "preset",
            "platforms",
            "referrers",
            "immutable",
            "backup",
            "policy",
            "verify_every",
            "schedule",
        ];
        let rules = rules.map(|key| format!("rules: [{{from: q.example/w, to: e.example, {key}: \"${{TOKEN}}\"}}]"));
        let tags = ["include", "exclude", "semver", "newest", "since", "min"];
        let tags = tags.map(|key| rule(&format!("tags: {{{key}: \"${{TOKEN}}\"}}")));
        let registries = REGISTRY.keys.iter().map(|key| registry(&format!("{}: \"${{TOKEN}}\"", key.name)));
        let tops = CONFIG.keys.iter().map(|key| format!("{}: \"${{TOKEN}}\"", key.name));
        let serve = ["listen", "hosts"].map(|key| format!("serve: {{{key}: \"${{TOKEN}}\"}}"));
        let notify = [
            "telegram: {group: \"${TOKEN}\"}",
            "email: {server: \"${TOKEN}\"}",
            "ping: \"${TOKEN}\"",
            "throttled: \"${TOKEN}\"",
        ];
        let notify = notify.map(|text| format!("notify: {{{text}}}"));
        for text in rules.into_iter().chain(tags).chain(registries).chain(tops).chain(serve).chain(notify) {
            let file = ConfigFile { name: "c.yaml", text: &text, environment: &environment, presets: Some(&[]) };
            if let Err(errors) = Config::read(&file) {
                assert!(!is_shown(&errors.to_string()), "{text}: {secret}\n{errors}");
            }
        }
        // As written in the file, in keys that hold secrets or stand beside one.
        for key in ["username", "ca", "client_cert", "client_key", "proxy", "password", "identity_token"] {
            for more in [", tsl: off", ", client_cert: c.pem, client_key: k.pem", ", password: [], endpoint: 1"] {
                let text = registry(&format!("{key}: '{secret}'{more}"));
                match read(&text) {
                    Err(errors) => assert!(!is_shown(&errors.to_string()), "{text}\n{errors}"),
                    Ok(config) => {
                        let shown = config.to_yaml_redacted();
                        assert!(!is_shown(&shown), "{text}\n{shown}");
                    }
                }
            }
        }
        for text in [
            format!("cluster: {{broker: '{secret}'}}"),
            format!("cluster: {{store: 'redis://u:{secret}/@h'}}"),
            format!("cluster: {{broker: {{url: 'amqp://h', username: '{secret}', pasword: x}}}}"),
            format!("rules: [{{from: a, to: r.io, username: '{secret}', client_key: '{secret}'}}]"),
            format!("registries:\n  r.io:\n    client_key: |\n      {secret}\n     : ["),
            format!("registries:\n  r.io: {{username: '{secret}', ca: '{secret}', x: ["),
        ] {
            assert!(!is_shown(&bad(&text)), "{text}\n{}", bad(&text));
        }
    }
}

#[test]
fn an_address_takes_user_and_password_apart_from_the_url() {
    let password = "p@/#?%:[]+&\\ ü";
    let environment = |name: &str| (name == "PASSWORD").then(|| password.to_owned());
    let read =
        |text: &str| Config::read(&ConfigFile { name: "c.yaml", text, environment: &environment, presets: None });
    for (broker, store, proxy) in [
        (
            "'amqp://me:${PASSWORD}@rabbit:5672/v'",
            "'redis://:${PASSWORD}@redis/2'",
            "'socks5h://me:${PASSWORD}@proxy:1'",
        ),
        (
            "{url: 'amqp://rabbit:5672/v', username: me, password: '${PASSWORD}'}",
            "{url: 'redis://redis/2', password: '${PASSWORD}'}",
            "{url: 'socks5h://proxy:1', username: me, password: '${PASSWORD}'}",
        ),
    ] {
        let text = format!(
            "cluster: {{broker: {broker}, store: {store}}}\nregistries: {{r.example.com: {{proxy: {proxy}}}}}\n"
        );
        let config = read(&text).unwrap_or_else(|errors| panic!("{errors}"));
        let cluster = config.cluster.as_ref().unwrap();
        let encoded = "p%40%2F%23%3F%25%3A%5B%5D%2B%26%5C%20%C3%BC";
        assert_eq!(cluster.broker[0].expose().as_str(), format!("amqp://me:{encoded}@rabbit:5672/v"));
        assert_eq!(cluster.store.as_ref().unwrap().server().expose().as_str(), format!("redis://:{encoded}@redis/2"));
        let proxy = config.registries[&"r.example.com".parse().unwrap()].proxy.clone().unwrap();
        assert_eq!(proxy.expose().as_str(), format!("socks5h://me:{encoded}@proxy:1"));
        assert!(!config.has_secrets_inline());
        let shown = config.to_yaml_redacted();
        assert!(shown.contains("url: amqp://rabbit:5672\n") && shown.contains("url: redis://redis\n"), "{shown}");
        assert_eq!(good(&shown).to_yaml_redacted(), shown);
    }
    for (text, wanted) in [
        ("store: 'redis://h', sentinel_password: p", "`sentinel_password` is for Sentinels"),
        ("store: 'redis+sentinel://:12%2F34@h'", "the name of the master is missing"),
        ("store: {url: 'redis+sentinel://:p@h/m', password: p}", "this URL holds a user or a password"),
        ("store: 'redis://:12%2F34@h:1,g:1'", "this one has a comma"),
        ("broker: {username: me, password: p}", "`url` is missing"),
        ("broker: {url: 'amqp://h', password: p}", "a `password` needs a `username`"),
        ("broker: {url: 'amqp://h', username: me}", "a `username` needs a `password` here"),
        ("broker: {url: 'amqp://me:p@h', password: p}", "this URL holds a user or a password"),
        ("broker: 'amqp://me:p@ss/w#rd@h'", "the password in this URL is ambiguous"),
        ("store: 'redis://:12/34@h'", "the password in this URL is ambiguous"),
        ("broker: ['amqp://h', 'amqp://me:12/34@g']", "the password in this URL is ambiguous"),
        ("broker: []", "this list is empty"),
        ("broker: ['amqp://me:12%2F34@h', {url: 'amqp://h:5672', username: me, password: p}]", "named twice"),
        ("broker: ['amqp://me:12%2F34@h/a', 'amqp://me:12%2F34@g/b']", "the virtual host differs"),
        ("broker: 'amqp://me:12%2F34@h,amqp://g'", "there is a comma in the host of this URL"),
        ("broker: 'amqp://h,amqp://g'", "there is a comma in the host of this URL"),
    ] {
        let text = format!("cluster: {{{text}}}");
        assert!(messages(&text)[0].contains(wanted), "{text}: {:?}", messages(&text));
        assert!(!bad(&text).contains("34") && !bad(&text).contains("ss/w"), "{}", bad(&text));
    }
    assert!(
        bad("cluster: {broker: 'amqp://me:p@ss@h'}")
            .contains("percent-encode the password, or use `username`/`password`")
    );
    assert!(bad(&registry("endpoint: 'https://me:12/34@h'")).contains("percent-encode the password"));
}

#[test]
fn sentinels_have_a_login_of_their_own() {
    let environment = |name: &str| Some(format!("{name}@/"));
    for store in [
        "'redis+sentinel://me:${SERVERS}@s1,s2:5000/m/2'",
        "{url: 'redis+sentinel://s1,s2:5000/m/2', username: me, password: '${SERVERS}'}",
        "'redis+sentinel://me:${SERVERS}@${HOSTS:-s1,s2:5000}/m/2'",
    ] {
        let environment = |name: &str| environment(name).filter(|_| name != "HOSTS");
        let text =
            format!("cluster: {{store: {store}, sentinel_username: watcher, sentinel_password: '${{SENTINELS}}'}}\n");
        let file = ConfigFile { name: "c.yaml", text: &text, environment: &environment, presets: None };
        let config = Config::read(&file).unwrap_or_else(|errors| panic!("{errors}"));
        let cluster = config.cluster.as_ref().unwrap();
        let url = cluster.store.as_ref().unwrap();
        assert_eq!(url.server().expose().as_str(), "redis://me:SERVERS%40%2F@s1:26379/2");
        assert_eq!(cluster.sentinel_password.as_ref().unwrap().expose(), "SENTINELS@/");
        assert!(!config.has_secrets_inline());
        let shown = config.to_yaml_redacted();
        assert!(shown.contains("url: redis+sentinel://s1:26379,s2:5000/m/2\n"), "{shown}");
        assert!(!shown.contains("watcher") && !shown.contains("SENTINELS"), "{shown}");
        assert_eq!(good(&shown).to_yaml_redacted(), shown);
    }
    assert!(good("cluster: {store: 'redis+sentinel://s/m', sentinel_password: p}").has_secrets_inline());
}
