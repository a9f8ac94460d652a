//! Bad input: each is refused with a reason and a way out, and changes nothing.

use lab::{Lab, text_of};

/// A command and what its refusal must say.
type Case = (&'static str, &'static [&'static str]);

const VPCS: &[Case] = &[
    (
        "create blue --cidr 10.9.0.0/16",
        &["vpc default/blue already exists", "choose another name"],
    ),
    (
        "create v --cidr 10.4.0.0/16 --cidr 10.4.1.0/24",
        &["overlaps 10.4.0.0/16"],
    ),
    (
        "create v --cidr 10.4.0.1/16",
        &["bits set beyond /16", "did you mean 10.4.0.0/16?"],
    ),
    ("create v --cidr fd00::1/64", &["did you mean fd00::/64?"]),
    (
        "create v --cidr 10.4.0/16",
        &["is not a prefix", "as in 10.4.1.0/24"],
    ),
    (
        "create v --cidr 010.4.0.0/16",
        &["is not a prefix", "as in 10.4.1.0/24"],
    ),
    ("create v --cidr 10.4.0.0/016", &["is not a prefix"]),
    ("create v --cidr 10.4.0.0", &["is not a prefix"]),
    ("create v --cidr 10.4.0.0/33", &["is not a prefix"]),
    ("create v --cidr fd00::/129", &["is not a prefix"]),
    ("create v --cidr ::ffff:10.4.0.0/112", &["cannot be used"]),
    ("create v --cidr banana", &["is not a prefix"]),
    ("create v --cidr ''", &["is not a prefix"]),
    (
        "create v --cidr 0.0.0.0/0",
        &["cannot be used: it is this-network"],
    ),
    (
        "create v --cidr 127.0.0.0/8",
        &["cannot be used: it is loopback"],
    ),
    (
        "create v --cidr 224.0.0.0/16",
        &["cannot be used: it is multicast"],
    ),
    (
        "create v --cidr fe80::/64",
        &["cannot be used: it is link-local"],
    ),
    ("create v", &["--cidr <CIDR>"]),
    (
        "create v --cidr 10.4.0.0/16 --vni 0",
        &["VNI 0 is out of range: 1 to 16777215"],
    ),
    (
        "create v --cidr 10.4.0.0/16 --vni 16777216",
        &["VNI 16777216 is out of range"],
    ),
    (
        "create v --cidr 10.4.0.0/16 --vni -1",
        &["unexpected argument '-1'"],
    ),
    (
        "create v --cidr 10.4.0.0/16 --vni 16777215",
        &["VNI 16777215 is taken by"],
    ),
    (
        "create v --cidr 10.4.0.0/16 --encoding foo",
        &["vlan-based or vlan-aware-bundle"],
    ),
    (
        "create v --cidr 10.4.0.0/16 --nonsense",
        &["unexpected argument '--nonsense'"],
    ),
    (
        "create Blue --cidr 10.4.0.0/16",
        &["only a-z, 0-9 and - may be used"],
    ),
    (
        "create a.b --cidr 10.4.0.0/16",
        &["only a-z, 0-9 and - may be used"],
    ),
    (
        "create a/b/c --cidr 10.4.0.0/16",
        &["\"b/c\" is not a name"],
    ),
    (
        "create '' --cidr 10.4.0.0/16",
        &["is not a name: it is empty"],
    ),
    (
        "create default/ --cidr 10.4.0.0/16",
        &["is not a name: it is empty"],
    ),
    (
        "create /b --cidr 10.4.0.0/16",
        &["\"\" is not a name: it is empty"],
    ),
    (
        "create $(printf %064d 0) --cidr 10.4.0.0/16",
        &["it is longer than 63 characters"],
    ),
    (
        "create --cidr 10.4.0.0/16 -- -a",
        &["must not start or end with -"],
    ),
    (
        "create nobody/b --cidr 10.4.0.0/16",
        &["there is no account nobody", "vpc account list"],
    ),
    ("show zz", &["there is no vpc zz", "`vpc list` shows"]),
    ("delete zz", &["there is no vpc zz", "`vpc list` shows"]),
    (
        "delete blue",
        &["it has subnets default/blue/", "delete or move"],
    ),
    (
        "delete blue --resource-version 9999",
        &["not 9999", "read it again"],
    ),
    (
        "account create default",
        &["account default already exists"],
    ),
    ("account create Foo", &["only a-z, 0-9 and - may be used"]),
    ("account delete default", &["it has VPCs default/blue"]),
    ("account delete zz", &["there is no account zz"]),
];

const SUBNETS: &[Case] = &[
    (
        "subnet create blue/web --cidr 10.4.9.0/24",
        &["subnet default/blue/web already exists"],
    ),
    (
        "subnet create blue/s --cidr 10.4.1.0/24",
        &["overlaps 10.4.1.0/24 of subnet default/blue/web"],
    ),
    (
        "subnet create blue/s --cidr 10.4.0.0/16",
        &["overlaps 10.4.1.0/24"],
    ),
    (
        "subnet create blue/s --cidr 10.4.1.128/25",
        &["overlaps 10.4.1.0/24"],
    ),
    (
        "subnet create blue/s --cidr 10.5.1.0/24",
        &["is not inside vpc default/blue", "add a prefix"],
    ),
    (
        "subnet create blue/s --cidr 10.0.0.0/8",
        &["is not inside vpc default/blue"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.1/24",
        &["did you mean 10.4.2.0/24?"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/31",
        &["need four addresses", "use /30 or shorter"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/32",
        &["need four addresses", "use /30 or shorter"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --cidr 10.4.3.0/24",
        &["of one family"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --vlan 0",
        &["0 is not in 1..=4094"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --vlan 4095",
        &["4095 is not in 1..=4094"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --vlan 100",
        &["VLAN 100 is taken by subnet default/blue/web"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --vni 0",
        &["VNI 0 is out of range"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --vni 16777216",
        &["VNI 16777216 is out of range"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --vni 16777215",
        &["VNI 16777215 is taken by"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --mtu 1451",
        &["MTU 1451", "1450"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --mtu 65535",
        &["MTU 65535", "1450"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --mtu 65536",
        &["is not in 576..=65535"],
    ),
    (
        "subnet create blue/s --cidr 10.4.2.0/24 --mtu 575",
        &["575 is not in 576..=65535"],
    ),
    (
        "subnet create blue/s --cidr fd04::/64 --mtu 1279",
        &["1280"],
    ),
    (
        "subnet create red/s --cidr 10.4.2.0/24",
        &["there is no vpc red", "vpc list"],
    ),
    (
        "subnet create s --cidr 10.4.2.0/24",
        &["too few parts", "write it as in blue/web"],
    ),
    (
        "subnet create blue/S --cidr 10.4.2.0/24",
        &["only a-z, 0-9 and - may be used"],
    ),
    ("subnet show blue/zz", &["there is no subnet blue/zz"]),
    ("subnet delete blue/zz", &["there is no subnet blue/zz"]),
    (
        "subnet delete blue/web",
        &["it has NICs default/blue/web/a1", "delete or move"],
    ),
    (
        "subnet delete blue/web --resource-version 9999",
        &["not 9999", "read it again"],
    ),
];

const NICS: &[Case] = &[
    (
        "nic create blue/web/a1 --host c1 --attach tap",
        &["nic default/blue/web/a1 already exists"],
    ),
    (
        "nic create blue/web/a2 --host c9 --attach tap",
        &["there is no host c9", "vpc host list"],
    ),
    (
        "nic create blue/zz/a2 --host c1 --attach tap",
        &["there is no subnet blue/zz"],
    ),
    (
        "nic create zz/web/a2 --host c1 --attach tap",
        &["there is no subnet zz/web"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip 10.4.1.11",
        &["10.4.1.11 is taken by nic default/blue/web/a1"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip 10.4.2.2",
        &["is not inside subnet default/blue/web"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip 10.4.1.0",
        &["its network address"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip 10.4.1.1",
        &["its gateway"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip 10.4.1.255",
        &["its broadcast address"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip fd00::1",
        &["is not inside subnet"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip banana",
        &["invalid IP address"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --ip 10.4.1.5 --ip 10.4.1.6",
        &["of one family"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --mac 02:00:00:00:00:11",
        &["is taken by nic default/blue/web/a1"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --mac 01:00:5e:00:00:01",
        &["group address", "02:00:00:00:00:01"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --mac ff:ff:ff:ff:ff:ff",
        &["group address"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --mac 00:00:00:00:00:00",
        &["all zeroes"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach tap --mac 02:00",
        &["is not a MAC address"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach netns:x:abcdefghijklmnop",
        &["longer than 15 bytes"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach existing:abcdefghijklmnop",
        &["longer than 15 bytes"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach existing:lo",
        &["loopback", "choose another"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach existing:",
        &["it is empty"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach existing:a/b",
        &["refuse"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach netns:",
        &["it is empty"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach netns:../x",
        &["is not a namespace name"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach netns:$(printf %0256d 0)",
        &["is not a namespace name: it is longer than"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach netns:x:lo",
        &["loopback"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach netns:a1:eth0",
        &["belongs to nic default/blue/web/a1"],
    ),
    (
        "nic create blue/web/a2 --host c1 --attach bridge:x",
        &["is not an attachment", "tap, netns:NAME"],
    ),
    (
        "nic create blue/web/A2 --host c1 --attach tap",
        &["only a-z, 0-9 and - may be used"],
    ),
    (
        "nic create blue/web/a.b --host c1 --attach tap",
        &["only a-z, 0-9 and - may be used"],
    ),
    (
        "nic create blue/web/ --host c1 --attach tap",
        &["too few parts"],
    ),
    (
        "nic create a/blue/web/a2/x --host c1 --attach tap",
        &["there is no subnet a/blue/web/a2"],
    ),
    (
        "nic create blue/web/$(printf %064d 0) --host c1 --attach tap",
        &["longer than 63"],
    ),
    ("nic create blue/web/a2 --attach tap", &["--host <HOST>"]),
    (
        "nic create blue/web/a2 --host c1",
        &["--attach <ATTACHMENT>"],
    ),
    ("nic show blue/web/zz", &["there is no nic blue/web/zz"]),
    ("nic show id:0", &["is not an id: ten characters"]),
    ("nic delete blue/web/zz", &["there is no nic blue/web/zz"]),
    (
        "nic delete blue/web/a1 --resource-version 9999",
        &["not 9999", "read it again"],
    ),
    ("nic list zz", &["there is no vpc zz"]),
    ("nic list --host zz", &["there is no host zz"]),
    (
        "nic list a/b/c/d",
        &["cannot tell what a/b/c/d is", "--kind"],
    ),
];

const OTHERS: &[Case] = &[
    ("host show zz", &["there is no host zz"]),
    ("host remove zz", &["there is no host zz"]),
    ("host remove c1", &["it has NICs default/blue/web/a1"]),
    (
        "host token create --role nonsense",
        &["compute, route, management or storage"],
    ),
    ("host token create --ttl 0", &["0 is not in 1..="]),
    ("host token revoke 0", &["is not"]),
    ("list --nonsense", &["unexpected argument '--nonsense'"]),
    ("nonsense", &["unrecognized subcommand 'nonsense'"]),
    ("-o yaml list", &["possible values: table, json"]),
    ("-o json delete blue", &["it has subnets"]),
    ("-o json show zz", &["there is no vpc zz"]),
    ("-o json list --nonsense", &["unexpected argument"]),
    (
        "--credential /nope list",
        &["reading credential file /nope", "--credential"],
    ),
    ("--credential /etc/hosts list", &["chmod 600 /etc/hosts"]),
];

#[test]
fn bad_input_is_refused_with_a_reason_and_changes_nothing() {
    let lab = Lab::up();
    lab.admin("create blue --cidr 10.4.0.0/16 --cidr fd04::/48");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24 --vlan 100 --vni 16777215");
    lab.admin("nic create blue/web/a1 --host c1 --attach netns:a1 --ip 10.4.1.11 --mac 02:00:00:00:00:11 --wait");
    // The same address and MAC in another VPC are nobody's business.
    lab.admin("create green --cidr 10.4.0.0/16");
    lab.admin("subnet create green/web --cidr 10.4.1.0/24 --vlan 100 --vni 1");
    lab.admin("nic create green/web/a1 --host c1 --attach netns:g1 --ip 10.4.1.11 --mac 02:00:00:00:00:11 --wait");
    let lists = || {
        [
            "list",
            "subnet list",
            "nic list",
            "account list",
            "host token list",
        ]
        .map(|list| lab.admin(list))
    };
    let (before, revision) = (lists(), lab.revision());
    let mut wrong = String::new();
    for (arguments, expected) in [VPCS, SUBNETS, NICS, OTHERS].concat() {
        let output = lab.try_sh("m1", &format!("vpc {arguments}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lacks: Vec<_> = expected
            .iter()
            .filter(|part| !stderr.contains(**part))
            .collect();
        let well = !output.status.success()
            && output.stdout.is_empty()
            && stderr.starts_with("error: ")
            && lacks.is_empty();
        let now = lab.revision();
        if !well || now != revision {
            wrong.push_str(&format!(
                "\nvpc {arguments}: revision {revision}, now {now}; lacks {lacks:?}: {}",
                text_of(&output)
            ));
        }
        assert_eq!(now, revision, "{wrong}");
    }
    assert_eq!(wrong, "");
    assert_eq!(before, lists());
}
